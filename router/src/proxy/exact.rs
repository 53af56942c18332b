//! Names of prompts as our replicas give them: their template, their tokenizer, their chain.
//!
//! ```text
//!  body ─▶ template, tokens (the model's own, fetched once) ─▶ chain from the caller's root ─▶ names
//!                                                                     ▲ asked once, kept until purged
//! ```
//!
//! The router holds no namespace's key: a replica tells it where the chain of a caller's namespace begins, by the
//! credential that the request brought. Replicas that were given one `--cluster-key` begin alike, so a name holds
//! for all of them; one that begins elsewhere is not followed, and what it caches is assumed.

use std::sync::Mutex;
use std::time::Duration;

use base::{AdapterId, Bytes, ChainHash, Clock, Generation};
use proto::v1::chain_root_request::Whose;
use proto::v1::text_assets_response::Message;
use proto::v1::{ChainRootRequest, ModelInfoRequest, Retention, TextAssetsRequest};
use serde_json::Value;
use text::Prompter;
use text::files::ModelFiles;

use super::upstream::lock;
use crate::events::{Channel, ChannelError, Key};
use crate::follow::scope_of;
use crate::index::Scope;
use crate::naming::prompt::Tokens;
use crate::naming::roots::{CredentialDigest, Keeps, Root, RootKey, Roots, extend_names};
use crate::source::Scope as ToldScope;

/// Of tokens of prompts that are remembered.
const TOKENS_BYTES_MAX: Bytes = Bytes(64 << 20);
const ROOTS_MAX: usize = 16 << 10;
/// For a call to a replica.
const PATIENCE: Duration = Duration::from_secs(5);
/// All files of a tokenizer together.
const ASSETS_BYTES_MAX: u64 = 256 << 20;

/// A prompt, named.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Named {
    pub scope: Scope,
    pub names: Vec<u64>,
    pub tokens: u32,
    pub block_tokens: u32,
}

/// Why a replica's names cannot be made here.
#[derive(Debug, thiserror::Error)]
pub enum NotExact {
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error("{0}")]
    Refused(#[from] tonic::Status),
    #[error("its tokenizer: {0}")]
    Text(#[from] text::TextError),
    #[error("its tokenizer's files: {0}")]
    Files(String),
    #[error("it names blocks otherwise than the replicas before it: start all with the same --cluster-key")]
    OtherNames,
    #[error("it serves another model, or pages of another size")]
    OtherModel,
}

/// See the file's head.
pub struct Exact {
    prompter: Prompter,
    block_tokens: usize,
    model: Vec<u8>,
    /// The chain of an empty salt in the default namespace: what two replicas are compared by.
    mark: Vec<u8>,
    roots: Mutex<Roots>,
}

impl Exact {
    /// Learns from a replica what names depend on. Reads its tokenizer, so it takes a moment.
    pub async fn learn(channel: &Channel) -> Result<Self, NotExact> {
        let info = channel.replica().model_info(ModelInfoRequest {}).await?.into_inner();
        let mark = mark(channel).await?;
        let files = assets(channel).await?;
        let prompter = tokio::task::spawn_blocking(move || -> Result<Prompter, NotExact> {
            let text = text::Text::load(&ModelFiles::Fetched(files))?;
            Ok(Prompter::from_text(std::sync::Arc::new(text), TOKENS_BYTES_MAX))
        });
        let prompter = prompter.await.map_err(|error| NotExact::Files(error.to_string()))??;
        Ok(Self {
            prompter,
            block_tokens: info.page_tokens as usize,
            model: info.model_digest,
            mark,
            roots: Mutex::new(Roots::new(ROOTS_MAX)),
        })
    }

    pub fn block_tokens(&self) -> u32 {
        self.block_tokens as u32
    }

    /// Whether another replica names as this one does.
    pub async fn agrees(&self, channel: &Channel) -> Result<(), NotExact> {
        let info = channel.replica().model_info(ModelInfoRequest {}).await?.into_inner();
        if info.model_digest != self.model || info.page_tokens as usize != self.block_tokens {
            return Err(NotExact::OtherModel);
        }
        if mark(channel).await? != self.mark {
            return Err(NotExact::OtherNames);
        }
        Ok(())
    }

    /// The names of a body's prompt, for whoever has `credential`; `None` where it has none that could be found.
    pub async fn name(
        &self,
        channel: &Channel,
        credential: &str,
        body: &[u8],
        clock: &dyn Clock,
    ) -> Option<Named> {
        let body: Value = serde_json::from_slice(body).ok()?;
        let tokens = self.prompter.of(&body, clock.unix_ms())?;
        let salt = body.get("cache_salt").and_then(Value::as_str).unwrap_or_default();
        let root = self.root(channel, credential, salt).await?;
        let mut names = Vec::with_capacity(tokens.len() / self.block_tokens.max(1));
        if root.keeps == Keeps::Blocks {
            extend_names(root.hash, &tokens, self.block_tokens, &mut names);
        }
        let scope = scope_of(&root.scope);
        Some(Named { scope, names, tokens: tokens.len() as u32, block_tokens: self.block_tokens() })
    }

    async fn root(&self, channel: &Channel, credential: &str, salt: &str) -> Option<std::sync::Arc<Root>> {
        let key = RootKey::new(CredentialDigest::of(credential), AdapterId(0), salt.as_bytes());
        let known = lock(&self.roots).get(&key);
        if known.is_some() {
            return known;
        }
        let asked = ChainRootRequest {
            whose: Some(Whose::Credential(credential.to_owned())),
            adapter: 0,
            salt: salt.as_bytes().to_vec(),
            generation: None,
        };
        let root = ask_root(channel, asked).await.ok()?;
        let mut roots = lock(&self.roots);
        roots.put(key.clone(), root).then(|| roots.get(&key)).flatten()
    }

    /// Nothing of a namespace up to a generation is named any more.
    pub fn purged(&self, namespace: &str, up_to: Generation) {
        lock(&self.roots).purge(namespace, up_to);
    }
}

async fn ask_root(channel: &Channel, asked: ChainRootRequest) -> Result<Root, NotExact> {
    let told = channel.with_deadline(PATIENCE).cache().chain_root(asked).await?.into_inner();
    let keeps = match told.retention() {
        Retention::Nothing => Keeps::Nothing,
        Retention::Keep | Retention::Unspecified => Keeps::Blocks,
    };
    let hash: [u8; 32] =
        told.root.try_into().map_err(|_| NotExact::Files("a root that is no hash".into()))?;
    let scope = ToldScope::new(&told.namespace, Generation(told.generation));
    Ok(Root { scope, hash: ChainHash(hash), keeps })
}

async fn mark(channel: &Channel) -> Result<Vec<u8>, NotExact> {
    let asked = ChainRootRequest {
        whose: Some(Whose::Namespace("default".into())),
        generation: None,
        ..ChainRootRequest::default()
    };
    Ok(ask_root(channel, asked).await?.hash.0.to_vec())
}

/// The files of a replica's tokenizer.
async fn assets(channel: &Channel) -> Result<Vec<(String, Vec<u8>)>, NotExact> {
    let odd = |what: &str| NotExact::Files(what.to_owned());
    let mut stream = channel.replica().text_assets(TextAssetsRequest::default()).await?.into_inner();
    let Some(Message::Head(head)) = stream.message().await?.and_then(|first| first.message) else {
        return Err(odd("they do not begin with a head"));
    };
    if head.assets.iter().map(|asset| asset.bytes).sum::<u64>() > ASSETS_BYTES_MAX {
        return Err(odd("they are too large"));
    }
    let mut files: Vec<(String, Vec<u8>)> =
        head.assets.iter().map(|asset| (asset.name.clone(), Vec::new())).collect();
    while let Some(message) = stream.message().await? {
        let Some(Message::Piece(piece)) = message.message else { return Err(odd("two heads")) };
        let (asset, file) = head
            .assets
            .get(piece.asset as usize)
            .zip(files.get_mut(piece.asset as usize))
            .ok_or_else(|| odd("a piece of no file"))?;
        if (file.1.len() + piece.content.len()) as u64 > asset.bytes {
            return Err(odd("a file is longer than was told"));
        }
        file.1.extend_from_slice(&piece.content);
    }
    let is_whole = head.assets.iter().zip(&files).all(|(asset, file)| asset.bytes == file.1.len() as u64);
    if is_whole { Ok(files) } else { Err(odd("they ended early")) }
}

/// One replica's connection for asking, opened anew when it has been lost.
pub struct Asking {
    address: String,
    key: Option<Key>,
    open: tokio::sync::Mutex<Option<Channel>>,
}

impl Asking {
    pub fn new(address: String, key: Option<Key>) -> Self {
        Self { address, key, open: tokio::sync::Mutex::new(None) }
    }

    pub async fn channel(&self) -> Result<Channel, ChannelError> {
        let mut open = self.open.lock().await;
        if let Some(channel) = open.as_ref().filter(|channel| channel.is_open()) {
            return Ok(channel.clone());
        }
        let channel = Channel::open(&self.address, self.key.clone(), PATIENCE).await?;
        *open = Some(channel.clone());
        Ok(channel)
    }
}
