//! From files to a model in a backend: describe, check, digest, pack, then the KV pool.
//!
//! All refusals that need no weights come before the first weight is read: a config that is not
//! understood, a shard that is missing, a tensor of the wrong shape, memory that will not suffice.

use base::{Bytes, ModelDigest};
use kernels::{
    Backend, DevicePlan, KvShape, KvType, LinearId, LinearNeed, MemoryNeeds, RopeId, RopeStore, StepLimits,
    VectorId, WeightForm,
};

use super::config::Config;
use super::description::{Description, Positions};
use super::digest;
use super::error::ModelError;
use super::families;
use super::forward::{Buffers, LayerIds, Model, WithBias};
use super::memory::{MemoryPlan, available, device_pages};
use super::names::{self, Expected, Projection};
use super::weights::{self, Dummy, Gguf, Progress, Shards, Tensor, TensorSource};
use crate::files::ModelFiles;

/// How weights are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightChoice {
    /// In the type of the checkpoint.
    #[default]
    AsStored,
    /// Every linear layer in this form; with [`WeightForm::Q8`] and [`WeightForm::Q4`] the embedding
    /// and the output projection are held as Q8, with [`WeightForm::E4m3`] as bf16.
    As(WeightForm),
}

/// How keys and values are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvChoice {
    /// F32 for a model whose weights are F32, else bf16.
    #[default]
    Auto,
    As(KvType),
}

/// Where weights come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LoadFormat {
    #[default]
    Files,
    /// Random bf16 weights; only the config is read.
    Dummy { seed: u64 },
}

/// How large the KV pool is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PoolSize {
    Pages(u32),
    Bytes(Bytes),
    /// Of the memory that is available once the weights are loaded.
    Fraction(f64),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoadOptions {
    pub format: LoadFormat,
    pub weights: WeightChoice,
    pub kv: KvChoice,
    /// Longest sequence to serve; `None` = what the config allows.
    pub positions_max: Option<u32>,
    /// 16, 32 or 64.
    pub page_tokens: u32,
    pub pool: PoolSize,
    /// Most tokens and most sequences of one step.
    pub step_tokens: u32,
    pub step_seqs: u32,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            format: LoadFormat::Files,
            weights: WeightChoice::AsStored,
            kv: KvChoice::Auto,
            positions_max: None,
            page_tokens: 16,
            pool: PoolSize::Fraction(0.5),
            step_tokens: 512,
            step_seqs: 256,
        }
    }
}

/// A model in a backend, ready to run.
pub struct Loaded {
    pub model: Model,
    pub backend: Box<dyn Backend>,
    pub kv: KvShape,
    pub memory: MemoryPlan,
    pub digest: ModelDigest,
    pub layout: [u8; 32],
    pub options: LoadOptions,
}

/// Describes the model in `files` without loading it.
pub fn describe(files: &ModelFiles) -> Result<Description, ModelError> {
    match files {
        ModelFiles::Gguf(path) => Gguf::open(path)?.describe(),
        _ => {
            let config = files.read("config.json")?.ok_or(ModelError::NoConfig { place: "config.json" })?;
            families::describe(&Config::parse(&config)?)
        }
    }
}

/// Loads the model in `files` into `backend`.
pub fn load(
    files: &ModelFiles,
    options: &LoadOptions,
    backend: Box<dyn Backend>,
    progress: &mut dyn Progress,
) -> Result<Loaded, ModelError> {
    match (options.format, files) {
        (LoadFormat::Dummy { seed }, _) => {
            let source = Dummy { seed, kind: kernels::HostType::Bf16 };
            load_from(&source, describe(files)?, options, backend, progress)
        }
        (LoadFormat::Files, ModelFiles::Gguf(path)) => {
            let mut source = Gguf::open(path)?;
            let description = source.describe()?;
            load_from(&source, description, options, backend, progress)
        }
        (LoadFormat::Files, _) => {
            let description = describe(files)?;
            load_from(&Shards::open(files)?, description, options, backend, progress)
        }
    }
}

/// Loads a described model from any source.
pub fn load_from(
    source: &dyn TensorSource,
    description: Description,
    options: &LoadOptions,
    mut backend: Box<dyn Backend>,
    progress: &mut dyn Progress,
) -> Result<Loaded, ModelError> {
    let positions = positions(&description, options)?;
    if let WeightChoice::As(form) = options.weights {
        backend.check_form(form)?;
    }
    if let KvChoice::As(kind) = options.kv {
        backend.check_kv(kind, description.head_dim)?;
    }
    let expected = names::expected(&description);
    let total = weights::check(source, &expected)?;
    let limits = StepLimits {
        rows: options.step_tokens as usize,
        seqs: options.step_seqs as usize,
        positions,
        heads: description.heads,
    };
    let device = plan_device(&*backend, &description, &expected, limits, options)?;
    let before = available();
    match &device {
        Some((plan, memory, _)) => {
            progress.planned(memory);
            backend.reserve(plan)?;
        }
        None => refuse_too_large(source, &expected, options, before)?,
    }
    backend.limits(limits)?;
    let digest = digest::model(source, &expected, total, &description, options.weights);
    let packing = Packing { source, choice: options.weights, progress, done: 0, total, exact: true };
    let (model, exact) = packing.pack(description, positions, options, &mut *backend)?;
    let (memory, kv) = match device {
        Some((_, memory, kv)) => (memory, kv),
        None => {
            let kind = kv_type(options, exact && backend.holds_f32());
            let one = page_shape(&model.description, kind, options)?;
            let kv = KvShape { pages: host_pages(&one, positions, options)?, ..one };
            let memory = host_plan(&*backend, &model, &kv, before);
            progress.planned(&memory);
            (memory, kv)
        }
    };
    backend.kv_pool(kv)?;
    let layout = digest::layout(&kv, &model.description.rope.table(positions), &backend.info());
    Ok(Loaded { model, backend, kv, memory, digest, layout, options: *options })
}

/// A device's plan, what it means for the start-up print, and the pool.
type Planned = (DevicePlan, MemoryPlan, KvShape);

/// What the model takes of a device with memory of its own; `None` if the backend has none such.
fn plan_device(
    backend: &dyn Backend,
    description: &Description,
    expected: &[Expected],
    limits: StepLimits,
    options: &LoadOptions,
) -> Result<Option<Planned>, ModelError> {
    let one = page_shape(description, kv_type(options, backend.holds_f32()), options)?;
    let logit_rows = backend.logit_rows().min(limits.rows);
    let (tables, vectors): (Vec<&Expected>, Vec<&Expected>) =
        expected.iter().partition(|e| e.shape.len() == 2);
    let linear = |e: &&Expected| {
        let (rows, cols) = weights::rows_cols(&e.shape);
        LinearNeed { rows, cols, form: role_of(e).form(options.weights, WeightForm::Bf16) }
    };
    let needs = MemoryNeeds {
        linears: tables.iter().map(linear).collect(),
        vectors: vectors.iter().map(|e| e.elements() as usize).collect(),
        ropes: vec![(limits.positions, description.rope.table(limits.positions).inv_freq.len())],
        buffers: Buffers::needs(description, limits.rows, logit_rows).to_vec(),
        limits,
        kv: one,
    };
    let Some(plan) = backend.plan(&needs)? else { return Ok(None) };
    let page = one.page_bytes() as u64;
    let pages = device_pages(&plan, options.pool, page, least_pages(limits.positions, options))?;
    refuse_too_few(pages, limits.positions, options, &one)?;
    let kv = KvShape { pages: pages.min(u64::from(u32::MAX)) as usize, ..one };
    let memory = MemoryPlan {
        weights: Bytes(plan.weights),
        kv_pages: Bytes(kv.pages as u64 * page),
        activations: Bytes(plan.buffers),
        reserve: Bytes(plan.reserve),
        headroom: Some(Bytes(plan.left().saturating_sub(kv.pages as u64 * page))),
        pages: kv.pages as u32,
        page_tokens: kv.page_tokens as u32,
    };
    Ok(Some((plan, memory, kv)))
}

/// What the host holds; KV pages are touched only when used, so asking for what is free would count them as free.
fn host_plan(backend: &dyn Backend, model: &Model, kv: &KvShape, before: Option<Bytes>) -> MemoryPlan {
    let plan = MemoryPlan {
        weights: Bytes(backend.weight_bytes()),
        kv_pages: Bytes((kv.pages * kv.page_bytes()) as u64),
        activations: Bytes(model.activation_bytes()),
        reserve: Bytes(0),
        headroom: None,
        pages: kv.pages as u32,
        page_tokens: kv.page_tokens as u32,
    };
    let left = |free: Bytes| Bytes(free.0.saturating_sub(plan.total().0));
    MemoryPlan { headroom: before.map(left), ..plan }
}

/// The longest sequence served, checked against what the model allows.
fn positions(d: &Description, options: &LoadOptions) -> Result<usize, ModelError> {
    match options.positions_max {
        None => Ok(d.positions_max),
        Some(n) if n > 0 && n as usize <= d.positions_max => Ok(n as usize),
        Some(n) => Err(ModelError::Option {
            option: "max-model-len",
            value: n.to_string(),
            why: format!("the model allows 1 to {}", d.positions_max),
        }),
    }
}

fn kv_type(options: &LoadOptions, exact: bool) -> KvType {
    match options.kv {
        KvChoice::As(kind) => kind,
        KvChoice::Auto if exact => KvType::F32,
        KvChoice::Auto => KvType::Bf16,
    }
}

/// A pool of one page.
fn page_shape(d: &Description, kind: KvType, options: &LoadOptions) -> Result<KvShape, ModelError> {
    let page_tokens = options.page_tokens as usize;
    if !matches!(page_tokens, 16 | 32 | 64) {
        let why = "16, 32 and 64 are possible".into();
        return Err(ModelError::Option { option: "block-size", value: page_tokens.to_string(), why });
    }
    let (layers, kv_heads, head_dim) = (d.layers.len(), d.kv_heads, d.head_dim);
    Ok(KvShape { pages: 1, page_tokens, layers, kv_heads, head_dim, kind })
}

/// Pages that one step of one sequence needs.
fn least_pages(positions: usize, options: &LoadOptions) -> u64 {
    positions.min(options.step_tokens as usize).div_ceil(options.page_tokens as usize) as u64
}

fn refuse_too_few(
    pages: u64,
    positions: usize,
    options: &LoadOptions,
    one: &KvShape,
) -> Result<(), ModelError> {
    let needed = least_pages(positions, options);
    match pages < needed {
        true => Err(ModelError::Pool { pages, needed, page_bytes: Bytes(one.page_bytes() as u64) }),
        false => Ok(()),
    }
}

/// Pages of a pool in host memory, once the weights are there.
fn host_pages(one: &KvShape, positions: usize, options: &LoadOptions) -> Result<usize, ModelError> {
    let fit = |bytes: u64| bytes / one.page_bytes() as u64;
    let share = |f: f64| (available().map_or(1e9, |b| b.0 as f64) * f.clamp(0.0, 1.0)) as u64;
    let pages = match options.pool {
        PoolSize::Pages(n) => u64::from(n),
        PoolSize::Bytes(bytes) => fit(bytes.0),
        PoolSize::Fraction(f) => fit(share(f)),
    };
    refuse_too_few(pages, positions, options, one)?;
    Ok(pages.min(u64::from(u32::MAX)) as usize)
}

/// Compares the packed size with the memory at hand before anything is read.
fn refuse_too_large(
    source: &dyn TensorSource,
    expected: &[Expected],
    options: &LoadOptions,
    available: Option<Bytes>,
) -> Result<(), ModelError> {
    let Some(available) = available else { return Ok(()) };
    let mut needed = 0;
    for e in expected {
        needed += match options.weights {
            WeightChoice::AsStored => source.info(e)?.map_or(0, |i| i.bytes),
            WeightChoice::As(form) => e.elements() * bits_per_weight(role_of(e).held_as(form)) / 8,
        };
    }
    match needed > available.0 {
        true => Err(ModelError::Memory { available, needed: Bytes(needed) }),
        false => Ok(()),
    }
}

/// Packed bits of one weight with its share of the group's scale, rounded up.
fn bits_per_weight(form: WeightForm) -> u64 {
    match form {
        WeightForm::F32 => 32,
        WeightForm::F16 | WeightForm::Bf16 => 16,
        WeightForm::Q8 => 9,
        WeightForm::Q4 => 5,
        // The scale of a channel is spread over thousands.
        WeightForm::E4m3 => 8,
    }
}

/// What a weight is for: tables stay finer than layers when both are quantized.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Layer,
    Table,
}

impl Role {
    /// How a weight is held that the checkpoint has as `stored`.
    fn form(self, choice: WeightChoice, stored: WeightForm) -> WeightForm {
        match choice {
            WeightChoice::AsStored => stored,
            WeightChoice::As(form) => self.held_as(form),
        }
    }

    /// How a weight is held where `form` was asked for.
    fn held_as(self, form: WeightForm) -> WeightForm {
        match (form, self) {
            (WeightForm::Q4, Role::Table) => WeightForm::Q8,
            (WeightForm::E4m3, Role::Table) => WeightForm::Bf16,
            _ => form,
        }
    }
}

fn role_of(expected: &Expected) -> Role {
    let is_table = expected.name == names::EMBEDDING || expected.name == names::HEAD;
    if is_table { Role::Table } else { Role::Layer }
}

/// Packs tensors one projection at a time.
struct Packing<'a> {
    source: &'a dyn TensorSource,
    choice: WeightChoice,
    progress: &'a mut dyn Progress,
    done: u64,
    total: u64,
    /// All linear weights so far are held as F32.
    exact: bool,
}

impl Packing<'_> {
    fn pack(
        mut self,
        d: Description,
        positions: usize,
        options: &LoadOptions,
        backend: &mut dyn Backend,
    ) -> Result<(Model, bool), ModelError> {
        let table = |name: &str| Expected { name: name.into(), shape: vec![d.vocab, d.hidden] };
        let embedding = self.linear(&[table(names::EMBEDDING)], Role::Table, backend)?;
        let rope = backend.rope_table(&d.rope.table(positions))?;
        let layers =
            (0..d.layers.len()).map(|i| self.layer(&d, i, rope, backend)).collect::<Result<_, _>>()?;
        let norm = self.vector(&[vector(names::NORM.into(), d.hidden)], backend)?;
        let head = match d.tied {
            true => embedding,
            false => self.linear(&[table(names::HEAD)], Role::Table, backend)?,
        };
        let buffers = Buffers::new(&d, options.step_tokens as usize, backend)?;
        let exact = self.exact;
        Ok((Model { description: d, positions, embedding, layers, norm, head, buffers }, exact))
    }

    fn layer(
        &mut self,
        d: &Description,
        i: usize,
        rope: RopeId,
        backend: &mut dyn Backend,
    ) -> Result<LayerIds, ModelError> {
        let name = |rest: &str| names::of_layer(i, rest);
        let shape = d.attention(&d.layers[i]);
        let input_norm = self.vector(&[vector(name("input_layernorm.weight"), d.hidden)], backend)?;
        let qkv = self.projection(i, names::qkv(d), backend)?;
        let (mut q_norm, mut k_norm) = (None, None);
        if d.qk_norm {
            q_norm = Some(self.vector(&[vector(name("self_attn.q_norm.weight"), d.head_dim)], backend)?);
            k_norm = Some(self.vector(&[vector(name("self_attn.k_norm.weight"), d.head_dim)], backend)?);
        }
        let rope = (d.layers[i].positions == Positions::Rotary).then_some(rope);
        Ok(LayerIds {
            input_norm,
            qkv,
            rope_store: RopeStore { shape, rope, q_norm, k_norm, eps: d.norm_eps },
            o: self.projection(i, names::o(d), backend)?,
            mlp_norm: self.vector(&[vector(name("post_attention_layernorm.weight"), d.hidden)], backend)?,
            gate_up: self.projection(i, names::gate_up(d), backend)?,
            down: self.projection(i, names::down(d), backend)?,
        })
    }

    fn projection(
        &mut self,
        i: usize,
        p: Projection,
        backend: &mut dyn Backend,
    ) -> Result<WithBias, ModelError> {
        let part = |(name, rows): &(&str, usize)| Expected {
            name: names::of_layer(i, &format!("{name}.weight")),
            shape: vec![*rows, p.cols],
        };
        let weights: Vec<Expected> = p.parts.iter().map(part).collect();
        let weight = self.linear(&weights, Role::Layer, backend)?;
        if !p.bias {
            return Ok(WithBias { weight, bias: None });
        }
        let bias = |(name, rows): &(&str, usize)| vector(names::of_layer(i, &format!("{name}.bias")), *rows);
        let biases: Vec<Expected> = p.parts.iter().map(bias).collect();
        Ok(WithBias { weight, bias: Some(self.vector(&biases, backend)?) })
    }

    fn linear(
        &mut self,
        parts: &[Expected],
        role: Role,
        backend: &mut dyn Backend,
    ) -> Result<LinearId, ModelError> {
        let source = self.source;
        let tensors = parts.iter().map(|e| source.read(e)).collect::<Result<Vec<_>, _>>()?;
        let stored = tensors.iter().map(|t| t.form).reduce(wider).unwrap_or(WeightForm::F32);
        let form = role.form(self.choice, stored);
        self.exact &= form == WeightForm::F32;
        let hosts = tensors.iter().map(Tensor::host).collect::<Result<Vec<_>, _>>()?;
        let id = backend.linear_weight(&hosts, form)?;
        drop(hosts);
        self.advance(parts)?;
        Ok(id)
    }

    fn vector(&mut self, parts: &[Expected], backend: &mut dyn Backend) -> Result<VectorId, ModelError> {
        let source = self.source;
        let tensors = parts.iter().map(|e| source.read(e)).collect::<Result<Vec<_>, _>>()?;
        let hosts = tensors.iter().map(Tensor::host).collect::<Result<Vec<_>, _>>()?;
        let id = backend.vector(&hosts)?;
        self.advance(parts)?;
        Ok(id)
    }

    fn advance(&mut self, parts: &[Expected]) -> Result<(), ModelError> {
        for e in parts {
            self.done += self.source.info(e)?.map_or(0, |i| i.bytes);
        }
        self.progress.advance(self.done, self.total);
        Ok(())
    }
}

fn vector(name: String, len: usize) -> Expected {
    Expected { name, shape: vec![len] }
}

/// The form that holds both without loss.
fn wider(a: WeightForm, b: WeightForm) -> WeightForm {
    let rank = |f| match f {
        WeightForm::Q4 => 0,
        WeightForm::Q8 | WeightForm::E4m3 => 1,
        WeightForm::F16 | WeightForm::Bf16 => 2,
        WeightForm::F32 => 3,
    };
    match (a, b) {
        (WeightForm::F16, WeightForm::Bf16) | (WeightForm::Bf16, WeightForm::F16) => WeightForm::F32,
        _ if rank(a) >= rank(b) => a,
        _ => b,
    }
}
