//! Where the server listens, who may talk to it, and how it stops.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use base::Limits;
use clap::ValueEnum;
use clap::builder::BoolishValueParser;
use runtime::api::{MetricsAlias, Raising, Scrapers};

use super::keys::keys_of;
use crate::failure::Failure;
use crate::size::parse_bytes;

/// Second names of the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Alias {
    None,
    /// Each series also as vllm:…, for dashboards made for it
    Vllm,
}

/// Who may read /metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MetricsAuth {
    /// Anyone who reaches the port
    Open,
    /// Whoever sends a --metrics-key or an operator's key
    Key,
}

/// As typed.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Server")]
pub struct ServerFlags {
    /// Address to listen on; 0.0.0.0 for all (set an API key then)
    #[arg(long, env = "QUIRE_HOST", hide_env_values = true, default_value = "127.0.0.1")]
    pub host: String,
    /// TCP port; 0 takes a free one, shown in the last line of the start
    #[arg(long, env = "QUIRE_PORT", hide_env_values = true, default_value_t = 8000)]
    pub port: u16,
    /// Port for gRPC (quire.v1: KV events, purge, load, health); 0 takes a free one [default: no gRPC]
    #[arg(long, value_name = "PORT", env = "QUIRE_GRPC_PORT", hide_env_values = true)]
    pub grpc_port: Option<u16>,
    /// Connections to the gRPC port; any one address gets half of them
    #[arg(long, value_name = "N", env = "QUIRE_GRPC_CONNECTIONS", hide_env_values = true, default_value_t = 512,
          value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub grpc_connections: u32,
    /// Key that clients must send as `Authorization: Bearer KEY`; may be repeated
    #[arg(long, value_name = "KEY", env = "QUIRE_API_KEY", hide_env_values = true)]
    pub api_key: Vec<String>,
    /// File with one such key a line
    #[arg(long, value_name = "FILE", env = "QUIRE_API_KEY_FILE", hide_env_values = true)]
    pub api_key_file: Option<PathBuf>,
    /// Key that may operate the server (purge, cache reports); may be repeated [default: any --api-key may]
    #[arg(long, value_name = "KEY", env = "QUIRE_ADMIN_KEY", hide_env_values = true)]
    pub admin_key: Vec<String>,
    /// Who may read /metrics [default: open, or key if there is a --metrics-key]
    #[arg(long, value_enum, env = "QUIRE_METRICS_AUTH", hide_env_values = true)]
    pub metrics_auth: Option<MetricsAuth>,
    /// Key that opens /metrics and nothing else; may be repeated
    #[arg(long, value_name = "KEY", env = "QUIRE_METRICS_KEY", hide_env_values = true)]
    pub metrics_key: Vec<String>,
    /// Let any request raise its `priority`; else only an operator's, and others are served at the default
    #[arg(long, value_name = "BOOL", env = "QUIRE_ALLOW_PRIORITY", hide_env_values = true,
          num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true",
          value_parser = BoolishValueParser::new(), action = clap::ArgAction::Set)]
    pub allow_priority: bool,
    /// Name of the model in the API; may be repeated [default: the folder's name]
    #[arg(long, value_name = "NAME", env = "QUIRE_SERVED_MODEL_NAME", hide_env_values = true)]
    pub served_model_name: Vec<String>,
    /// Requests admitted and not yet finished; one more gets 429
    #[arg(long, value_name = "N", alias = "max-queue", env = "QUIRE_MAX_REQUESTS", hide_env_values = true,
          default_value_t = Limits::default().requests_max as u32,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_requests: u32,
    /// Largest request body
    #[arg(long, value_name = "SIZE", env = "QUIRE_MAX_BODY_SIZE", hide_env_values = true,
          default_value = "16MiB", value_parser = parse_bytes)]
    pub max_body_size: base::Bytes,
    /// Most alternatives per token that a request may ask for
    #[arg(long, value_name = "N", env = "QUIRE_MAX_LOGPROBS", hide_env_values = true,
          default_value_t = Limits::default().top_logprobs_max as u32,
          value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub max_logprobs: u32,
    /// Most choices (`n`) of one request
    #[arg(long, value_name = "N", env = "QUIRE_MAX_CHOICES", hide_env_values = true,
          default_value_t = Limits::default().choices_max as u32,
          value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub max_choices: u32,
    /// Second names of the metrics
    #[arg(long, value_enum, env = "QUIRE_METRICS_ALIAS", hide_env_values = true, default_value = "none")]
    pub metrics_alias: Alias,
    /// Seconds that running requests get to finish after the first SIGTERM or SIGINT
    #[arg(long, value_name = "SECONDS", env = "QUIRE_SHUTDOWN_TIMEOUT", hide_env_values = true,
          default_value_t = 30, value_parser = clap::value_parser!(u32).range(0..=86_400))]
    pub shutdown_timeout: u32,
}

/// As meant.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    pub host: String,
    pub port: u16,
    /// gRPC too, on this port.
    pub grpc_port: Option<u16>,
    pub grpc_connections: usize,
    pub keys: Vec<String>,
    pub admin_keys: Vec<String>,
    pub scrapers: Scrapers,
    pub raising: Raising,
    /// Empty: named after the model's folder.
    pub names: Vec<String>,
    pub limits: Limits,
    pub metrics_alias: MetricsAlias,
    pub drain: Duration,
}

impl ServerFlags {
    pub fn meant(&self) -> Result<ServerOptions, Failure> {
        let keys = keys_of(&self.api_key, self.api_key_file.as_deref())?;
        if self.admin_key.iter().any(|k| k.is_empty()) {
            return Err(Failure::usage("--admin-key must not be empty"));
        }
        let scrapers = self.scrapers(keys.is_empty() && self.admin_key.is_empty())?;
        let limits = Limits {
            requests_max: self.max_requests as usize,
            body_bytes_max: self.max_body_size.0 as usize,
            choices_max: self.max_choices as usize,
            top_logprobs_max: self.max_logprobs as usize,
            ..Limits::default()
        };
        Ok(ServerOptions {
            host: self.host.clone(),
            port: self.port,
            grpc_port: self.grpc_port,
            grpc_connections: self.grpc_connections as usize,
            scrapers,
            raising: if self.allow_priority { Raising::Anyone } else { Raising::Operators },
            admin_keys: self.admin_key.clone(),
            keys,
            names: self.served_model_name.clone(),
            limits,
            metrics_alias: match self.metrics_alias {
                Alias::None => MetricsAlias::None,
                Alias::Vllm => MetricsAlias::Vllm,
            },
            drain: Duration::from_secs(u64::from(self.shutdown_timeout)),
        })
    }

    fn scrapers(&self, has_no_operator: bool) -> Result<Scrapers, Failure> {
        if self.metrics_key.iter().any(|k| k.is_empty()) {
            return Err(Failure::usage("--metrics-key must not be empty"));
        }
        match (self.metrics_auth, self.metrics_key.as_slice()) {
            (None, []) | (Some(MetricsAuth::Open), []) => Ok(Scrapers::Anyone),
            (Some(MetricsAuth::Open), _) => {
                Err(Failure::usage("--metrics-key closes /metrics, and --metrics-auth open opens it")
                    .hint("keep one of them"))
            }
            (Some(MetricsAuth::Key), []) if has_no_operator => Err(Failure::usage(
                "--metrics-auth key asks for a key, and there is none that opens /metrics",
            )
            .hint("set --metrics-key, or --admin-key")),
            (None | Some(MetricsAuth::Key), keys) => Ok(Scrapers::Keyed(keys.to_vec())),
        }
    }
}

impl ServerOptions {
    /// Reachable from other machines, and open to all of them.
    pub fn is_wide_open(&self) -> bool {
        let loopback =
            self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        !loopback && self.keys.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        flags: ServerFlags,
    }

    fn meant(args: &[&str]) -> Result<ServerOptions, Failure> {
        Only::try_parse_from([&["t"], args].concat()).unwrap().flags.meant()
    }

    #[test]
    fn a_wide_address_without_a_key_is_noticed() {
        assert!(meant(&["--host", "0.0.0.0"]).unwrap().is_wide_open());
        assert!(meant(&["--host", "::"]).unwrap().is_wide_open());
        assert!(!meant(&["--host", "0.0.0.0", "--api-key", "k"]).unwrap().is_wide_open());
        for loopback in ["localhost", "127.0.0.1", "127.1.2.3", "::1"] {
            assert!(!meant(&["--host", loopback]).unwrap().is_wide_open(), "{loopback}");
        }
    }

    #[test]
    fn metrics_are_open_until_a_key_is_asked_for_or_given() {
        let scrapers = |args: &[&str]| meant(args).map(|options| options.scrapers);
        assert_eq!(scrapers(&[]).unwrap(), Scrapers::Anyone);
        assert_eq!(scrapers(&["--api-key", "k"]).unwrap(), Scrapers::Anyone);
        let keyed = Scrapers::Keyed(vec!["m".into()]);
        assert_eq!(scrapers(&["--metrics-key", "m"]).unwrap(), keyed);
        assert_eq!(
            scrapers(&["--metrics-auth", "key", "--admin-key", "a"]).unwrap(),
            Scrapers::Keyed(vec![])
        );
        let refused = |args| scrapers(args).unwrap_err().message;
        assert!(refused(&["--metrics-auth", "key"]).contains("there is none"));
        assert!(refused(&["--metrics-auth", "open", "--metrics-key", "m"]).contains("opens it"));
        assert!(refused(&["--metrics-key", ""]).contains("must not be empty"));
    }

    #[test]
    fn keys_come_from_flags_and_file_together() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("keys");
        std::fs::write(&file, "one\n\n two \n").unwrap();
        let path = file.to_str().unwrap();
        assert_eq!(
            meant(&["--api-key", "zero", "--api-key-file", path]).unwrap().keys,
            ["zero", "one", "two"]
        );
        std::fs::write(&file, "\n").unwrap();
        assert!(meant(&["--api-key-file", path]).unwrap_err().message.contains("holds no key"));
        assert!(meant(&["--api-key-file", "/no/such"]).unwrap_err().message.contains("/no/such"));
    }
}
