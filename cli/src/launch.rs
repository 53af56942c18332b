//! From checked options to a replica that answers: bind, plan the memory, load, start the engine.
//!
//! The port is bound first, so that a port in use is heard at once and not after a minute of loading, and
//! so that `/health` says `loading` meanwhile.

use std::fmt::{self, Write as _};
use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use base::{Clock, NamespaceKey};
use clap::{CommandFactory, FromArgMatches};
use kernels::{KernelError, KvType, WeightForm};
use runtime::api::{App, ServerConfig, TenantKeys, os_entropy};
use runtime::engine::{Engine, StartError};
use runtime::events::{EventHub, EventServer, EventsConfig, Snapshots};
use runtime::executor::sim::{SimConfig, SimModel, Verify};
use runtime::executor::threaded::ThreadedExecutor;
use runtime::executor::{self, Executor};
use runtime::files::ModelFiles;
use runtime::model::{
    self, KvChoice, LoadFormat, LoadOptions, MemoryPlan, ModelError, PoolSize, Progress, WeightChoice,
};
use runtime::scheduler::SchedulerConfig;
use runtime::storage::{DEFAULT, Keys, Namespace, Retention, StorageError};
use runtime::text::{Text, TextError};
use transfer::{ClusterKey, NodeSigner};

use crate::backend::{self, Kind, Opened};
use crate::demo;
use crate::failure::{Exit, Failure};
use crate::flags::{
    self, CacheOptions, EngineFlags, GpuOptions, ModelOptions, Room, ServerOptions, TierOptions,
};
use crate::http::Endpoint;
use crate::listen::listen;
use crate::progress::LoadProgress;
use crate::version;

/// KV memory of the demo: plenty for it, and little to others on the machine.
const DEMO_KV: base::Bytes = base::Bytes(256 << 20);
/// Share of the free memory that KV pages get when nothing is said.
const KV_SHARE: f64 = 0.5;
/// Vocabulary and pages of the simulated executor.
const SIM_VOCAB: u32 = 32_000;
const SIM_PAGES: u32 = 65_536;

/// Which model.
#[derive(Clone, Debug)]
pub enum Source {
    Demo,
    Path(std::path::PathBuf),
    /// Nothing is read.
    Sim,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Demo => f.write_str("the demo model"),
            Source::Path(path) => path.display().fmt(f),
            Source::Sim => f.write_str("no model (simulated)"),
        }
    }
}

/// Everything a replica is started from.
#[derive(Clone, Debug)]
pub struct Launch {
    pub source: Source,
    pub server: ServerOptions,
    model: ModelOptions,
    gpu: GpuOptions,
    cache: CacheOptions,
    tiers: TierOptions,
    schedule: SchedulerConfig,
    /// Namespaces, their secrets and what signs purge reports, made once: server and engine must agree on
    /// who is who.
    secrets: Arc<Mutex<Option<(Keys, NodeSigner)>>>,
    tenants: Vec<TenantKeys>,
}

/// A replica that can serve.
pub struct Replica {
    pub engine: Engine,
    pub text: Text,
    pub signer: NodeSigner,
    /// Ends after `Engine::stop`, once what was being copied to lower tiers is there.
    pub thread: JoinHandle<()>,
}

impl Launch {
    pub fn new(model: Option<&Path>, flags: &EngineFlags) -> Result<Self, Failure> {
        let server = flags.server.meant()?;
        let cache = flags.cache.meant()?;
        let options = flags.model.meant();
        let source = match (model, options.executor) {
            (_, flags::Engine::Sim) => Source::Sim,
            (Some(path), _) => Source::Path(path.to_owned()),
            (None, _) => Source::Demo,
        };
        let mut schedule = flags.schedule.meant(server.limits.requests_max, &cache);
        let tiers = flags.tiers.meant(cache.eviction.into())?;
        schedule.prefetch = tiers.prefetch;
        schedule.namespace_key = drawn_key();
        let keys = keys(&tiers)?;
        let tenants = tenants(&keys);
        let signer = signer(tiers.sign_key.as_deref())?;
        let secrets = Arc::new(Mutex::new(Some((keys, signer))));
        let gpu = flags.gpu.meant();
        Ok(Self { source, server, model: options, gpu, cache, tiers, schedule, secrets, tenants })
    }

    /// The demo as `quire up` starts it, on a free port.
    pub fn demo() -> Result<Self, Failure> {
        Self::new(None, &default_flags())
    }

    /// The model at `path` with default settings, on a free port.
    pub fn of(path: &Path) -> Result<Self, Failure> {
        Self::new(Some(path), &default_flags())
    }

    /// Takes the port.
    pub fn bind(&self) -> Result<TcpListener, Failure> {
        listen(&self.server.host, self.server.port, "--port")
    }

    /// Takes the port for gRPC, if one was asked for.
    pub fn bind_grpc(&self) -> Result<Option<TcpListener>, Failure> {
        self.server.grpc_port.map(|port| listen(&self.server.host, port, "--grpc-port")).transpose()
    }

    /// What the HTTP server is told.
    pub fn server_config(&self) -> ServerConfig {
        let names = match (self.server.names.as_slice(), &self.source) {
            ([], Source::Demo) => vec![demo::NAME.to_owned()],
            ([], Source::Sim) => vec!["sim".to_owned()],
            ([], Source::Path(path)) => vec![name_of(path)],
            (names, _) => names.to_vec(),
        };
        ServerConfig {
            models: names,
            api_keys: self.server.keys.clone(),
            admin_keys: self.server.admin_keys.clone(),
            tenants: self.tenants.clone(),
            retention: self.retention(),
            limits: self.server.limits.clone(),
            drain: self.server.drain,
            grpc_connections_max: self.server.grpc_connections,
            raising: self.server.raising,
            scrapers: self.server.scrapers.clone(),
            metrics_alias: self.server.metrics_alias,
            entropy: self.model.seed.unwrap_or_else(os_entropy),
            version: version::NUMBER.into(),
            ..ServerConfig::default()
        }
    }

    /// Loads the model and starts the engine; says on `out` what takes memory.
    pub fn start(
        &self,
        events: Option<EventHub>,
        clock: &Arc<dyn Clock>,
        out: &mut dyn Write,
    ) -> Result<Replica, Failure> {
        let (executor, text) = match &self.source {
            Source::Sim => self.sim(clock)?,
            Source::Demo => {
                let files = demo::files().ok_or_else(|| {
                    Failure::new(Exit::Model, "this build has no demo model").hint("use `quire serve MODEL`")
                })?;
                self.model(&files, clock, out)?
            }
            Source::Path(path) => self.model(&open(path)?, clock, out)?,
        };
        let secrets = self.secrets.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (keys, signer) = secrets.ok_or_else(|| Failure::failed("a replica is started once"))?;
        let _ = out.write_all(self.tier_plan().as_bytes());
        let (schedule, storage) = (self.schedule.clone(), &self.tiers.storage);
        let started = Engine::start_tiered(executor, schedule, storage, keys, events, Arc::clone(clock));
        let (engine, thread) = started.map_err(|e| shut(&e))?;
        Ok(Replica { engine, text, signer, thread })
    }

    /// Keeps KV events and serves them over ZeroMQ from now on; `None` if nobody could follow them.
    pub async fn publish_events(&self, clock: &Arc<dyn Clock>) -> Result<Option<EventHub>, Failure> {
        let options = &self.tiers.events;
        let has_grpc = self.server.grpc_port.is_some();
        if options.socket.is_none() && !has_grpc {
            return Ok(None);
        }
        // Followers over gRPC begin with a snapshot.
        let snapshots = if has_grpc { Snapshots::On } else { Snapshots::Off };
        let config = EventsConfig { snapshots, ..options.config.clone() };
        let hub = EventHub::start(config, Arc::clone(clock))?;
        if let Some(socket) = &options.socket {
            let server = EventServer::bind(hub.clone(), &socket.endpoint, socket.replay.as_deref()).await;
            let server =
                server.map_err(|e| Failure::new(Exit::Address, format!("cannot publish KV events: {e}")))?;
            tokio::spawn(server.serve());
        }
        Ok(Some(hub))
    }

    /// Of the default namespace.
    fn retention(&self) -> Retention {
        let specs = &self.tiers.storage.namespaces;
        specs.iter().find(|spec| spec.name == DEFAULT).map_or(Retention::Keep, |spec| spec.retention)
    }

    /// What lies below the device, one line a tier.
    fn tier_plan(&self) -> String {
        let storage = &self.tiers.storage;
        let mut text = String::new();
        let write = storage.host.write;
        if storage.host.bytes > 0 {
            let _ = writeln!(text, "KV tiers:     {write}");
            let _ = writeln!(text, "  host        {}", base::Bytes(storage.host.bytes));
        }
        for (name, cold) in [("nvme", &storage.nvme), ("object", &storage.object)] {
            if let Some((dir, room)) = cold {
                let _ = writeln!(text, "  {name:<11} {} in {}", base::Bytes(room.bytes), dir.display());
            }
        }
        if storage.nvme.is_some() || storage.object.is_some() {
            let _ = match &storage.key_store {
                Some(paths) => writeln!(text, "  keys        {}: kept over restarts", paths.store.display()),
                None => writeln!(text, "  keys        in memory: a restart forgets the cold tiers"),
            };
        }
        text
    }

    fn sim(&self, clock: &Arc<dyn Clock>) -> Result<(Box<dyn Executor>, Text), Failure> {
        let pages = if let Room::Pages(pages) = self.cache.room { pages } else { SIM_PAGES };
        let mut config = SimConfig::new(pages, self.cache.page_tokens, SIM_VOCAB);
        config.verify = Verify::Off;
        config.shape.step_tokens_max = self.schedule.step_tokens;
        config.shape.step_seqs_max = self.schedule.step_seqs;
        if let Some(len) = self.model.max_model_len {
            config.shape.positions_max = len;
        }
        let executor = ThreadedExecutor::start("sim", SimModel::new(config), 2, Arc::clone(clock))?;
        let text = Text::synthetic(SIM_VOCAB).map_err(|e| Failure::new(Exit::Model, e.to_string()))?;
        Ok((Box::new(executor), text))
    }

    fn model(
        &self,
        files: &ModelFiles,
        clock: &Arc<dyn Clock>,
        out: &mut dyn Write,
    ) -> Result<(Box<dyn Executor>, Text), Failure> {
        let text = self.text(files)?;
        // The demo is small: the CPU serves it wherever it is tried.
        let engine = match (&self.source, self.model.executor) {
            (Source::Demo, flags::Engine::Auto) => flags::Engine::Cpu,
            (_, engine) => engine,
        };
        let Opened { backend, what, kind } = backend::open(engine, self.model.threads, &self.gpu)?;
        let mut told = Told { bar: LoadProgress::new(), out, compute: &what };
        let loaded =
            model::load(files, &self.load_options(kind), backend, &mut told).map_err(|e| refused(&e))?;
        let executor = executor::model::start(loaded, Arc::clone(clock)).map_err(|e| refused(&e))?;
        Ok((Box::new(executor), text))
    }

    /// The model's text side; random weights in the shape of a bare config.json speak in numbers.
    fn text(&self, files: &ModelFiles) -> Result<Text, Failure> {
        let refused = |e: TextError| Failure::new(Exit::Model, e.to_string());
        match Text::load(files) {
            Err(TextError::Missing(_)) if self.model.load_format == flags::LoadFormat::Dummy => {
                let described = model::describe(files).map_err(|e| crate::launch::refused(&e))?;
                Text::synthetic(described.vocab as u32).map_err(refused)
            }
            loaded => loaded.map_err(refused),
        }
    }

    fn load_options(&self, kind: Kind) -> LoadOptions {
        use flags::{Dtype, KvDtype, Quantize};
        let weights = match (self.model.quantize, self.model.dtype) {
            (Quantize::Q8, _) => WeightChoice::As(WeightForm::Q8),
            (Quantize::Q4, _) => WeightChoice::As(WeightForm::Q4),
            (Quantize::Fp8, _) => WeightChoice::As(WeightForm::E4m3),
            (Quantize::None, Dtype::Auto) => WeightChoice::AsStored,
            (Quantize::None, Dtype::Bfloat16) => WeightChoice::As(WeightForm::Bf16),
            (Quantize::None, Dtype::Float16) => WeightChoice::As(WeightForm::F16),
            (Quantize::None, Dtype::Float32) => WeightChoice::As(WeightForm::F32),
        };
        LoadOptions {
            format: match self.model.load_format {
                flags::LoadFormat::Auto => LoadFormat::Files,
                flags::LoadFormat::Dummy => LoadFormat::Dummy { seed: self.model.seed.unwrap_or(0) },
            },
            weights,
            kv: match self.cache.dtype {
                KvDtype::Auto => KvChoice::Auto,
                KvDtype::Bfloat16 => KvChoice::As(KvType::Bf16),
                KvDtype::Float32 => KvChoice::As(KvType::F32),
                KvDtype::Fp8 => KvChoice::As(KvType::E4m3),
            },
            positions_max: self.model.max_model_len,
            page_tokens: self.cache.page_tokens,
            pool: match (self.cache.room, &self.source) {
                (Room::Pages(pages), _) => PoolSize::Pages(pages),
                (Room::Memory(bytes), _) => PoolSize::Bytes(bytes),
                (Room::Auto, Source::Demo) => PoolSize::Bytes(DEMO_KV),
                (Room::Auto, _) if kind == Kind::Cuda => PoolSize::Fraction(self.gpu.share),
                (Room::Auto, _) => PoolSize::Fraction(KV_SHARE),
            },
            step_tokens: self.schedule.step_tokens,
            step_seqs: self.schedule.step_seqs,
        }
    }
}

/// The keys of all namespaces but those of server-wide keys.
fn tenants(keys: &Keys) -> Vec<TenantKeys> {
    let named = keys.namespaces().iter().filter(|namespace| !namespace.spec.api_keys.is_empty());
    let of = |namespace: &Namespace| TenantKeys {
        namespace: namespace.id,
        retention: namespace.spec.retention,
        keys: namespace.spec.api_keys.clone(),
    };
    named.map(of).collect()
}

/// What signs purge reports; of this process alone if no file was named.
fn keys(tiers: &TierOptions) -> Result<Keys, Failure> {
    let cluster = tiers.cluster_key.as_deref().map(ClusterKey::load).transpose();
    let cluster = cluster.map_err(|e| Failure::usage(format!("--cluster-key: {e}")))?;
    Keys::open_in(&tiers.storage.namespaces, tiers.storage.key_store.as_ref(), cluster)
        .map_err(|e| Failure::usage(e.to_string()))
}

fn signer(file: Option<&Path>) -> Result<NodeSigner, Failure> {
    match file {
        Some(path) => {
            NodeSigner::load_or_create(path).map_err(|e| Failure::usage(format!("--sign-key: {e}")))
        }
        None => NodeSigner::random().map_err(|e| Failure::failed(e.to_string())),
    }
}

fn shut(error: &StartError) -> Failure {
    let failure = Failure::new(Exit::Storage, error.to_string());
    match error {
        StartError::Storage(StorageError::Tier { .. } | StorageError::Journal { .. }) => {
            failure.hint("the directory must be writable, and one server's alone")
        }
        _ => failure,
    }
}

/// Serves on the current runtime until the process ends; for commands that bring their own server.
pub async fn in_process(
    launch: &Launch,
    clock: &Arc<dyn Clock>,
    out: &mut (dyn Write + Send),
) -> Result<Endpoint, Failure> {
    let listener = launch.bind()?;
    let authority = listener.local_addr()?.to_string();
    let replica = launch.start(None, clock, out)?;
    let app = App::new(replica.engine, replica.text, launch.server_config(), Arc::clone(clock));
    app.sign_with(replica.signer);
    let listener = tokio::net::TcpListener::from_std(listener)?;
    tokio::spawn(runtime::api::serve(listener, app, std::future::pending()));
    Ok(Endpoint { authority, path: String::new(), key: None })
}

/// What `--port 0` and nothing else means, whatever the environment says.
fn default_flags() -> EngineFlags {
    #[derive(clap::Parser)]
    struct Only {
        #[command(flatten)]
        flags: EngineFlags,
    }
    let command = Only::command().mut_args(|arg| arg.env(None::<&str>));
    let matches = command.get_matches_from(["quire", "--port", "0"]);
    Only::from_arg_matches(&matches).expect("the defaults are valid").flags
}

fn open(path: &Path) -> Result<ModelFiles, Failure> {
    ModelFiles::open(path).map_err(|e| {
        Failure::new(Exit::Model, e.to_string())
            .hint("MODEL is a folder with config.json, tokenizer.json and *.safetensors, or a .gguf file")
    })
}

fn refused(error: &ModelError) -> Failure {
    let failure = Failure::new(Exit::Model, error.to_string());
    match error {
        ModelError::Memory { .. } => {
            failure.hint("less: --quantize, --max-model-len, --max-num-batched-tokens, --kv-memory")
        }
        ModelError::Device { .. } => {
            failure.hint("nothing was taken of the GPU; --executor cpu works without it")
        }
        ModelError::Damaged { .. } | ModelError::ShardMissing { .. } | ModelError::TensorMissing { .. } => {
            failure.hint("fetch the model's files again")
        }
        ModelError::Kernel(KernelError::Form { backend: "cpu", .. }) => {
            failure.hint("fp8 is for GPUs; on a CPU use --quantize q8, and --kv-cache-dtype auto")
        }
        ModelError::Kernel(KernelError::Form { .. }) => {
            failure.hint("on a GPU use --quantize fp8 or none, or serve with --executor cpu")
        }
        _ => failure,
    }
}

/// Who watches a load: a bar for the weights, and the plan of the memory as soon as there is one.
struct Told<'a> {
    bar: LoadProgress,
    out: &'a mut dyn Write,
    compute: &'a str,
}

impl Progress for Told<'_> {
    fn advance(&mut self, done: u64, total: u64) {
        self.bar.advance(done, total);
    }
    fn planned(&mut self, memory: &MemoryPlan) {
        // A plan that cannot be shown does not stop the start.
        let _ = self.out.write_all(plan(memory, self.compute).as_bytes());
    }
}

/// What takes memory, and what is left.
fn plan(memory: &MemoryPlan, compute: &str) -> String {
    let left = memory.headroom.map_or_else(|| "unknown".into(), |b| b.to_string());
    let reserve = match memory.reserve.0 {
        0 => String::new(),
        _ => format!("\x20 reserve     {} for recordings and libraries\n", memory.reserve),
    };
    format!(
        "compute:      {compute}\n\
         memory:       {}\n\
         \x20 weights     {}\n\
         \x20 KV pages    {} ({} pages of {} tokens, {} tokens in all)\n\
         \x20 buffers     {}\n\
         {reserve}\
         \x20 headroom    {left}\n",
        memory.total(),
        memory.weights,
        memory.kv_pages,
        memory.pages,
        memory.page_tokens,
        memory.tokens(),
        memory.activations,
    )
}

/// The folder's or file's own name, as vLLM's users expect the model to be called.
fn name_of(path: &Path) -> String {
    let full = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let name = if full.is_file() { full.file_stem() } else { full.file_name() };
    name.map_or_else(|| "model".into(), |n| n.to_string_lossy().into_owned())
}

/// Page names of one process mean nothing to another until they share a key.
fn drawn_key() -> NamespaceKey {
    let mut key = [0; 32];
    for part in key.chunks_exact_mut(8) {
        part.copy_from_slice(&os_entropy().to_le_bytes());
    }
    NamespaceKey(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_called_after_its_folder_or_file() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("Qwen2.5-0.5B");
        std::fs::create_dir(&folder).unwrap();
        assert_eq!(name_of(&folder.join(".")), "Qwen2.5-0.5B");
        let file = dir.path().join("tiny.gguf");
        std::fs::write(&file, "").unwrap();
        assert_eq!(name_of(&file), "tiny");
    }

    #[test]
    fn two_processes_would_draw_two_keys() {
        assert!(drawn_key() != drawn_key());
    }
}
