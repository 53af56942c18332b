//! A GPU that dies: its requests hear why, nobody is served from it, and whoever started the engine is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use base::{Priority, SystemClock};
use cusim::{Options, SimDriver};
use expect_test::expect;
use kernels::cuda::driver::Arch;
use kernels::cuda::{CudaBackend, CudaOptions};
use kernels::{HostType, SamplingParams, WeightForm};
use quire_runtime::engine::{Engine, Health};
use quire_runtime::executor::model;
use quire_runtime::request::{Event, Refusal, Request, Tenant};
use quire_runtime::scheduler::SchedulerConfig;

use crate::tiny::Case;

fn engine() -> (Engine, JoinHandle<()>, Arc<AtomicBool>) {
    let driver = SimDriver::new(Arch(80), Options::seeded(1));
    let killer = driver.killer();
    let backend = Box::new(CudaBackend::new(Box::new(driver), CudaOptions::default()));
    let loaded = Case::named("llama-gqa-tied").load(HostType::Bf16, WeightForm::Bf16, 16, backend);
    let clock = Arc::new(SystemClock::new());
    let executor = model::start(loaded, clock.clone()).expect("an executor");
    let (engine, thread) =
        Engine::start(Box::new(executor), SchedulerConfig::default(), clock).expect("an engine");
    (engine, thread, killer)
}

fn request(engine: &Engine) -> Request {
    Request {
        id: engine.next_id(),
        tenant: Tenant::default(),
        prompt: [1, 2, 3, 4, 5].into(),
        params: Arc::new(SamplingParams { temperature: 0.0, ..SamplingParams::default() }),
        max_tokens: 3,
        prompt_logprobs: None,
        priority: Priority(0),
        deadline: None,
    }
}

async fn last(engine: &Engine) -> Event {
    let mut running = engine.submit(request(engine)).expect("it is taken");
    let mut last = None;
    while let Some(event) = running.next().await {
        last = Some(event);
    }
    last.expect("an end")
}

#[test]
fn a_dead_device_fails_its_requests_and_ends_the_engine_with_the_reason() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let (engine, thread, killer) = engine();
    assert!(matches!(runtime.block_on(last(&engine)), Event::Finished(_)));
    killer.store(true, Ordering::Relaxed);
    let Event::Failed(Refusal::Engine(heard)) = runtime.block_on(last(&engine)) else {
        panic!("a dead device answers nothing")
    };
    assert!(heard.contains("illegal memory access"), "{heard}");
    let reason = runtime.block_on(engine.lost());
    expect!["the device is lost: an illegal memory access was encountered (emulated)"].assert_eq(&reason);
    assert_eq!(engine.health(), Health::Lost);
    assert!(matches!(engine.submit(request(&engine)), Err(Refusal::Engine(_))));
    thread.join().expect("the scheduler's thread ends by itself");
}
