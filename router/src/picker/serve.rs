//! The picker's gRPC server.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use proto::envoy::service::ext_proc::v3::external_processor_server::{
    ExternalProcessor, ExternalProcessorServer,
};
use proto::envoy::service::ext_proc::v3::{ProcessingRequest, ProcessingResponse};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tonic::body::Body;
use tonic::codegen::tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};
use web::{Phase, accept, follow_phase};

use super::exchange::{Exchange, SILENCE};
use crate::proxy::Router;

const PICKER: &str = "/envoy.service.ext_proc.v3.ExternalProcessor/";
const CONNECTIONS_MAX: usize = 1024;
/// Requests of one gateway connection at a time.
const STREAMS_MAX: u32 = 4096;
/// Answers that wait for the gateway to read, of one request.
const ANSWERS_MAX: usize = 64;
const PING: Duration = Duration::from_secs(20);

/// Serves gateways until `shutdown` resolves, then waits for the requests that run, `drain` at most.
pub async fn serve(
    listener: TcpListener,
    router: Arc<Router>,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let drain = router.config.drain;
    let service = services(router).await;
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let (phase, _) = watch::channel(Phase::Serving);
    let begin = |stream: TcpStream, slot: OwnedSemaphorePermit| {
        let (service, phase) = (service.clone(), phase.subscribe());
        tokio::spawn(async move {
            let _slot = slot;
            let _ = stream.set_nodelay(true);
            let connection = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .keep_alive_interval(PING)
                .keep_alive_timeout(PING)
                .max_concurrent_streams(STREAMS_MAX)
                .serve_connection(TokioIo::new(stream), service);
            follow_phase(pin!(connection), phase, |connection| connection.graceful_shutdown()).await;
        });
    };
    accept(listener, &slots, shutdown, begin).await;
    phase.send_replace(Phase::Draining);
    let _ = tokio::time::timeout(drain, slots.acquire_many(CONNECTIONS_MAX as u32)).await;
    phase.send_replace(Phase::Cut);
    Ok(())
}

/// The picker, and health for whoever probes it; anything else is told that there is no such method.
async fn services(
    router: Arc<Router>,
) -> impl Service<hyper::Request<Incoming>, Response = hyper::Response<Body>, Error = Infallible, Future: Send>
+ Clone
+ Send
+ 'static {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<ExternalProcessorServer<Picker>>().await;
    let picker = ExternalProcessorServer::new(Picker { router });
    service_fn(move |request: hyper::Request<Incoming>| {
        let (mut picker, mut health) = (picker.clone(), health.clone());
        async move {
            match request.uri().path().starts_with(PICKER) {
                true => tonic::codegen::Service::call(&mut picker, request).await,
                false => tonic::codegen::Service::call(&mut health, request).await,
            }
        }
    })
}

struct Picker {
    router: Arc<Router>,
}

#[tonic::async_trait]
impl ExternalProcessor for Picker {
    type ProcessStream = Answers;

    async fn process(
        &self,
        request: Request<Streaming<ProcessingRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let (sender, receiver) = mpsc::channel(ANSWERS_MAX);
        let exchange = Exchange::new(Arc::clone(&self.router));
        tokio::spawn(exchange_task(exchange, request.into_inner(), sender));
        Ok(Response::new(Answers(receiver)))
    }
}

/// Follows one request to its end, or to its gateway's.
async fn exchange_task(
    mut exchange: Exchange,
    mut messages: Streaming<ProcessingRequest>,
    answers: mpsc::Sender<Result<ProcessingResponse, Status>>,
) {
    loop {
        let message = tokio::select! {
            message = tokio::time::timeout(SILENCE, messages.message()) => message,
            () = answers.closed() => return,
        };
        let Ok(Ok(Some(message))) = message else { return };
        // Waiting for a place ends when the gateway gives up.
        let said = tokio::select! {
            said = exchange.hear(message) => said,
            () = answers.closed() => return,
        };
        for answer in said {
            if answers.send(Ok(answer)).await.is_err() {
                return;
            }
        }
        if exchange.is_over() {
            return;
        }
    }
}

/// The answers of one request.
struct Answers(mpsc::Receiver<Result<ProcessingResponse, Status>>);

impl Stream for Answers {
    type Item = Result<ProcessingResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}
