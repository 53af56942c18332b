//! Where KV pages go when the device is full, how long they live, and whose they are.

use std::path::PathBuf;
use std::time::Duration;

use base::{Bytes, Tier};
use clap::ValueEnum;
use kvcache::WritePolicy;
use runtime::events::EventsConfig;
use runtime::scheduler::PrefetchPolicy;
use runtime::storage::{KeyStorePaths, NamespaceSpec, Retention, StorageConfig, TierRoom};
use serde::Deserialize;

use crate::failure::Failure;
use crate::size::parse_bytes;

/// Host memory that pages of cold tiers pass through if nothing is said.
const STAGING: Bytes = Bytes(256 << 20);

/// When a page is copied to the next tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Write {
    /// As soon as it is computed
    #[value(name = "write_through")]
    Through,
    /// Once it has been used twice
    #[value(name = "write_through_selective")]
    Selective,
    /// When it is about to be evicted
    #[value(name = "write_back")]
    Back,
}

/// Whether a request waits for pages on their way up from a cold tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Prefetch {
    /// It takes what is there when its turn comes
    BestEffort,
    /// Until they are there
    Wait,
    /// No longer than --kv-prefetch-timeout-ms
    Timeout,
}

/// As typed.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Cache tiers and namespaces")]
pub struct TierFlags {
    /// Host memory that keeps pages evicted from the device [default: 256MiB with a cold tier, else none]
    #[arg(long, value_name = "SIZE", env = "QUIRE_KV_HOST_MEMORY", hide_env_values = true, value_parser = parse_bytes)]
    pub kv_host_memory: Option<Bytes>,
    /// Directory on a local disk that keeps sealed pages
    #[arg(long, value_name = "DIR", env = "QUIRE_KV_NVME_DIR", hide_env_values = true)]
    pub kv_nvme_dir: Option<PathBuf>,
    /// Room that pages may take there
    #[arg(long, value_name = "SIZE", env = "QUIRE_KV_NVME_SIZE", hide_env_values = true,
          default_value = "16GiB", value_parser = parse_bytes)]
    pub kv_nvme_size: Bytes,
    /// Directory of an object store that keeps the coldest sealed pages
    #[arg(long, value_name = "DIR", env = "QUIRE_KV_OBJECT_DIR", hide_env_values = true)]
    pub kv_object_dir: Option<PathBuf>,
    /// Room that pages may take there
    #[arg(long, value_name = "SIZE", env = "QUIRE_KV_OBJECT_SIZE", hide_env_values = true,
          default_value = "64GiB", value_parser = parse_bytes)]
    pub kv_object_size: Bytes,
    /// When a page is copied to the next tier
    #[arg(
        long,
        value_enum,
        env = "QUIRE_KV_WRITE_POLICY",
        hide_env_values = true,
        default_value = "write_through"
    )]
    pub kv_write_policy: Write,
    /// Whether a request waits for pages on their way up from a cold tier
    #[arg(long, value_enum, env = "QUIRE_KV_PREFETCH", hide_env_values = true, default_value = "timeout")]
    pub kv_prefetch: Prefetch,
    /// Longest wait of --kv-prefetch timeout
    #[arg(long, value_name = "MS", env = "QUIRE_KV_PREFETCH_TIMEOUT_MS", hide_env_values = true,
          default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=600_000))]
    pub kv_prefetch_timeout_ms: u32,
    /// File of wrapped keys: sealed pages open again after a restart [default: keys die with the process]
    #[arg(long, value_name = "FILE", env = "QUIRE_KEY_STORE", hide_env_values = true)]
    pub key_store: Option<PathBuf>,
    /// File with the node's key, which wraps the others; made if missing [default: node.key beside --key-store]
    #[arg(long, value_name = "FILE", env = "QUIRE_NODE_KEY", hide_env_values = true)]
    pub node_key: Option<PathBuf>,
    /// File with the key that replicas share to name blocks alike, so that a router can name them too [default:
    /// each draws its own]
    #[arg(long, value_name = "FILE", env = "QUIRE_CLUSTER_KEY", hide_env_values = true)]
    pub cluster_key: Option<PathBuf>,
    /// File with the key that signs purge reports; made if missing [default: sign.key beside --key-store]
    #[arg(long, value_name = "FILE", env = "QUIRE_SIGN_KEY", hide_env_values = true)]
    pub sign_key: Option<PathBuf>,
    /// TOML file of namespaces: names, API keys, quotas, retention
    #[arg(long, value_name = "FILE", env = "QUIRE_NAMESPACES", hide_env_values = true)]
    pub namespaces: Option<PathBuf>,
    /// Publish KV events there over ZeroMQ in vLLM's schema, as tcp://HOST:PORT
    #[arg(long, value_name = "ENDPOINT", env = "QUIRE_KV_EVENTS_ENDPOINT", hide_env_values = true)]
    pub kv_events_endpoint: Option<String>,
    /// Replay missed KV events there
    #[arg(
        long,
        value_name = "ENDPOINT",
        env = "QUIRE_KV_EVENTS_REPLAY_ENDPOINT",
        hide_env_values = true,
        requires = "kv_events_endpoint"
    )]
    pub kv_events_replay_endpoint: Option<String>,
    /// First frame of every KV event message over ZeroMQ
    #[arg(
        long,
        value_name = "TEXT",
        env = "QUIRE_KV_EVENTS_TOPIC",
        hide_env_values = true,
        default_value = ""
    )]
    pub kv_events_topic: String,
    /// KV event batches that can be replayed, over ZeroMQ and gRPC
    #[arg(long, value_name = "N", env = "QUIRE_KV_EVENTS_BUFFER", hide_env_values = true, default_value_t = 10_000,
          value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub kv_events_buffer: u32,
}

/// As meant.
#[derive(Clone, Debug)]
pub struct TierOptions {
    pub storage: StorageConfig,
    pub prefetch: PrefetchPolicy,
    pub cluster_key: Option<PathBuf>,
    pub sign_key: Option<PathBuf>,
    pub events: EventOptions,
}

/// How KV events are kept, and where they go beside gRPC.
#[derive(Clone, Debug)]
pub struct EventOptions {
    pub socket: Option<EventSocket>,
    pub config: EventsConfig,
}

/// Where KV events are published over ZeroMQ.
#[derive(Clone, Debug)]
pub struct EventSocket {
    pub endpoint: String,
    pub replay: Option<String>,
}

impl TierFlags {
    pub fn meant(&self, eviction: kvcache::EvictionKind) -> Result<TierOptions, Failure> {
        let write = match self.kv_write_policy {
            Write::Through => WritePolicy::WriteThrough,
            Write::Selective => WritePolicy::WriteThroughSelective { uses: WritePolicy::SELECTIVE_USES },
            Write::Back => WritePolicy::WriteBack,
        };
        let room = |bytes: Bytes| TierRoom { bytes: bytes.0, write };
        let is_cold = self.kv_nvme_dir.is_some() || self.kv_object_dir.is_some();
        let host = self.kv_host_memory.unwrap_or(if is_cold { STAGING } else { Bytes(0) });
        let storage = StorageConfig {
            host: room(host),
            nvme: self.kv_nvme_dir.clone().map(|dir| (dir, room(self.kv_nvme_size))),
            object: self.kv_object_dir.clone().map(|dir| (dir, room(self.kv_object_size))),
            eviction,
            key_store: self.key_store_paths()?,
            namespaces: self.namespaces.as_deref().map(read_namespaces).transpose()?.unwrap_or_default(),
        };
        let timeout = Duration::from_millis(u64::from(self.kv_prefetch_timeout_ms));
        let prefetch = match self.kv_prefetch {
            Prefetch::BestEffort => PrefetchPolicy::BestEffort,
            Prefetch::Wait => PrefetchPolicy::Wait,
            Prefetch::Timeout => PrefetchPolicy::Timeout(timeout),
        };
        let beside = self.key_store.as_ref().map(|store| store.with_file_name("sign.key"));
        let replay = self.kv_events_replay_endpoint.clone();
        let events = EventOptions {
            socket: self.kv_events_endpoint.clone().map(|endpoint| EventSocket { endpoint, replay }),
            config: EventsConfig {
                buffer: self.kv_events_buffer as usize,
                topic: self.kv_events_topic.clone(),
                ..EventsConfig::default()
            },
        };
        let cluster_key = self.cluster_key.clone();
        Ok(TierOptions { storage, prefetch, cluster_key, sign_key: self.sign_key.clone().or(beside), events })
    }

    fn key_store_paths(&self) -> Result<Option<KeyStorePaths>, Failure> {
        match (&self.key_store, &self.node_key) {
            (Some(store), node_key) => {
                let node_key = node_key.clone().unwrap_or_else(|| store.with_file_name("node.key"));
                Ok(Some(KeyStorePaths { store: store.clone(), node_key }))
            }
            (None, Some(_)) => {
                Err(Failure::usage("--node-key wraps the keys of a --key-store, and there is none")
                    .hint("give --key-store, or leave both out: keys then die with the process"))
            }
            (None, None) => Ok(None),
        }
    }
}

/// The file of namespaces.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NamespacesFile {
    #[serde(default)]
    namespace: Vec<NamespaceEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NamespaceEntry {
    name: String,
    #[serde(default)]
    api_keys: Vec<String>,
    #[serde(default = "yes")]
    retain: bool,
    #[serde(default)]
    quota: QuotaEntry,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct QuotaEntry {
    device: Option<String>,
    host: Option<String>,
    nvme: Option<String>,
    object: Option<String>,
}

fn yes() -> bool {
    true
}

fn read_namespaces(path: &std::path::Path) -> Result<Vec<NamespaceSpec>, Failure> {
    let refuse = |why: String| Failure::usage(format!("--namespaces {}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| refuse(e.to_string()))?;
    parse_namespaces(&text).map_err(refuse)
}

fn parse_namespaces(text: &str) -> Result<Vec<NamespaceSpec>, String> {
    let file: NamespacesFile = toml::from_str(text).map_err(|e| e.to_string().trim_end().to_owned())?;
    file.namespace.into_iter().map(NamespaceEntry::meant).collect()
}

impl NamespaceEntry {
    fn meant(self) -> Result<NamespaceSpec, String> {
        if self.name.is_empty() {
            return Err("a namespace has an empty name".into());
        }
        if self.api_keys.iter().any(String::is_empty) {
            return Err(format!("namespace {:?} has an empty API key", self.name));
        }
        let QuotaEntry { device, host, nvme, object } = self.quota;
        let mut quotas = [None; Tier::ALL.len()];
        for (tier, typed) in Tier::ALL.into_iter().zip([device, host, nvme, object]) {
            quotas[tier.index()] = typed
                .map(|text| parse_bytes(&text).map(|bytes| bytes.0))
                .transpose()
                .map_err(|e| format!("namespace {:?}, quota.{tier}: {e}", self.name))?;
        }
        Ok(NamespaceSpec {
            name: self.name,
            api_keys: self.api_keys,
            retention: if self.retain { Retention::Keep } else { Retention::Nothing },
            quotas,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        flags: TierFlags,
    }

    fn meant(args: &[&str]) -> Result<TierOptions, Failure> {
        let args = ["quire"].iter().chain(args);
        Only::parse_from(args).flags.meant(kvcache::EvictionKind::default())
    }

    #[test]
    fn nothing_said_means_the_device_alone() {
        let options = meant(&[]).unwrap();
        assert_eq!(options.storage.host.bytes, 0);
        assert!(options.storage.nvme.is_none() && options.storage.key_store.is_none());
    }

    #[test]
    fn a_disk_brings_host_memory_to_pass_through_and_keys_lie_beside_each_other() {
        let options = meant(&["--kv-nvme-dir", "/kv", "--key-store", "/keys/keys.json"]).unwrap();
        assert_eq!(options.storage.host.bytes, STAGING.0);
        assert_eq!(options.storage.nvme.unwrap().1.bytes, 16 << 30);
        assert_eq!(options.storage.key_store.unwrap().node_key, PathBuf::from("/keys/node.key"));
        assert_eq!(options.sign_key, Some(PathBuf::from("/keys/sign.key")));
        assert!(meant(&["--node-key", "/k"]).unwrap_err().message.contains("there is none"));
    }

    #[test]
    fn namespaces_are_read_with_their_quotas_and_refused_by_name() {
        let good =
            "[[namespace]]\nname = \"acme\"\napi_keys = [\"k\"]\nretain = false\nquota = { host = \"1GiB\" }";
        let specs = parse_namespaces(good).unwrap();
        assert_eq!(specs[0].quotas, [None, Some(1 << 30), None, None]);
        assert_eq!(specs[0].retention, Retention::Nothing);
        let bad = "[[namespace]]\nname = \"acme\"\nquota = { host = \"much\" }";
        assert!(parse_namespaces(bad).unwrap_err().contains("namespace \"acme\", quota.host"));
        assert!(parse_namespaces("[[namespace]]\nnmae = \"acme\"").unwrap_err().contains("nmae"));
    }
}
