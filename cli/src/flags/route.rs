//! Where the router listens, which replicas it has, how it chooses, and whom it lets in.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use router::decide::Policy;
use router::proxy::Config;
use router::proxy::upstream::Address;

use super::LogFlags;
use super::keys::keys_of;
use crate::failure::Failure;
use crate::size::parse_bytes;

/// How a replica is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PolicyName {
    /// Least predicted time, by what each replica holds of the prompt and what it has to do
    KvAware,
    /// Each in its turn
    RoundRobin,
    /// Fewest running requests
    LeastLoaded,
    /// Any
    Random,
    /// By the prompt's first block alone
    PrefixHash,
}

impl PolicyName {
    pub fn meant(self) -> Policy {
        match self {
            PolicyName::KvAware => Policy::default(),
            PolicyName::RoundRobin => Policy::RoundRobin,
            PolicyName::LeastLoaded => Policy::LeastLoaded,
            PolicyName::Random => Policy::Random,
            PolicyName::PrefixHash => Policy::PrefixHash,
        }
    }
}

/// As typed.
#[derive(Clone, Debug, clap::Args)]
pub struct RouteFlags {
    /// Replicas by address, such as http://10.0.0.7:8000; Quire's or any that speaks the OpenAI API
    #[arg(value_name = "REPLICA")]
    pub replicas: Vec<String>,
    /// Address to listen on; 0.0.0.0 for all (set an API key then)
    #[arg(
        long,
        env = "QUIRE_HOST",
        hide_env_values = true,
        default_value = "127.0.0.1",
        help_heading = "Server"
    )]
    pub host: String,
    /// TCP port; 0 takes a free one, shown in the last line of the start
    #[arg(long, env = "QUIRE_PORT", hide_env_values = true, default_value_t = 8080, help_heading = "Server")]
    pub port: u16,
    /// Port for gateways that ask where to send requests (Envoy ext_proc, gRPC); 0 takes a free one [default: none]
    #[arg(
        long,
        value_name = "PORT",
        env = "QUIRE_PICKER_PORT",
        hide_env_values = true,
        help_heading = "Server"
    )]
    pub picker_port: Option<u16>,
    /// Key that clients must send as `Authorization: Bearer KEY`; may be repeated [default: the replicas decide]
    #[arg(long, value_name = "KEY", env = "QUIRE_API_KEY", hide_env_values = true, help_heading = "Server")]
    pub api_key: Vec<String>,
    /// File with one such key a line
    #[arg(
        long,
        value_name = "FILE",
        env = "QUIRE_API_KEY_FILE",
        hide_env_values = true,
        help_heading = "Server"
    )]
    pub api_key_file: Option<PathBuf>,
    /// Key that opens /debug; may be repeated [default: any --api-key does]
    #[arg(
        long,
        value_name = "KEY",
        env = "QUIRE_ADMIN_KEY",
        hide_env_values = true,
        help_heading = "Server"
    )]
    pub admin_key: Vec<String>,
    /// Largest request body
    #[arg(long, value_name = "SIZE", env = "QUIRE_MAX_BODY_SIZE", hide_env_values = true,
          default_value = "16MiB", value_parser = parse_bytes, help_heading = "Server")]
    pub max_body_size: base::Bytes,
    /// Client connections; one more waits to be accepted
    #[arg(long, value_name = "N", env = "QUIRE_MAX_CONNECTIONS", hide_env_values = true, default_value_t = 16_384,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000), help_heading = "Server")]
    pub max_connections: u32,
    /// Threads that carry requests
    #[arg(long, value_name = "N", env = "QUIRE_THREADS", hide_env_values = true, default_value_t = 2,
          value_parser = clap::value_parser!(u16).range(1..=256), help_heading = "Server")]
    pub threads: u16,
    /// Seconds that running requests get to finish after the first SIGTERM or SIGINT
    #[arg(long, value_name = "SECONDS", env = "QUIRE_SHUTDOWN_TIMEOUT", hide_env_values = true,
          default_value_t = 30, value_parser = clap::value_parser!(u32).range(0..=86_400), help_heading = "Server")]
    pub shutdown_timeout: u32,
    /// How a replica is chosen
    #[arg(
        long,
        value_enum,
        env = "QUIRE_POLICY",
        hide_env_values = true,
        default_value = "kv-aware",
        help_heading = "Routing"
    )]
    pub policy: PolicyName,
    /// Key for probes and events; with an --api-key also what replicas are shown instead of the client's
    #[arg(
        long,
        value_name = "KEY",
        env = "QUIRE_REPLICA_KEY",
        hide_env_values = true,
        help_heading = "Routing"
    )]
    pub replica_key: Option<String>,
    /// Seconds that a request may take, waiting included
    #[arg(long, value_name = "SECONDS", env = "QUIRE_REQUEST_TIMEOUT", hide_env_values = true,
          default_value_t = 1800, value_parser = clap::value_parser!(u32).range(1..=86_400), help_heading = "Routing")]
    pub request_timeout: u32,
    /// Milliseconds for a connection to a replica
    #[arg(long, value_name = "MS", env = "QUIRE_CONNECT_TIMEOUT", hide_env_values = true,
          default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=60_000), help_heading = "Routing")]
    pub connect_timeout: u32,
    /// Milliseconds between two probes of a replica; two without an answer mean that it is gone
    #[arg(long, value_name = "MS", env = "QUIRE_HEALTH_INTERVAL", hide_env_values = true,
          default_value_t = 500, value_parser = clap::value_parser!(u32).range(10..=60_000), help_heading = "Routing")]
    pub health_interval: u32,
    #[command(flatten)]
    pub log: LogFlags,
    /// TOML file whose keys are the long flag names; flags and environment win over it
    #[arg(long, value_name = "FILE", env = "QUIRE_CONFIG", hide_env_values = true, help_heading = "Options")]
    pub config: Option<PathBuf>,
}

impl RouteFlags {
    pub fn meant(&self) -> Result<Config, Failure> {
        if self.replicas.is_empty() {
            return Err(Failure::usage(
                "`quire route` needs at least one REPLICA, such as http://127.0.0.1:8000",
            )
            .hint("start one with `quire serve MODEL`, or `quire up` for the demo model"));
        }
        let replicas = self.replicas.iter().map(|url| Address::parse(url)).collect::<Result<Vec<_>, _>>();
        let replicas = replicas.map_err(|error| Failure::usage(format!("REPLICA {error}")))?;
        if let Some((at, twice)) = replicas.iter().enumerate().find(|(at, one)| replicas[..*at].contains(one))
        {
            return Err(Failure::usage(format!(
                "REPLICA {twice} is named twice (the {}. time here)",
                at + 1
            )));
        }
        let ms = |ms: u32| Duration::from_millis(u64::from(ms));
        Ok(Config {
            replicas,
            policy: self.policy.meant(),
            keys: keys_of(&self.api_key, self.api_key_file.as_deref())?,
            admin_keys: self.admin_key.clone(),
            replica_key: self.replica_key.clone(),
            connect_timeout: ms(self.connect_timeout),
            request_timeout: Duration::from_secs(u64::from(self.request_timeout)),
            health_interval: ms(self.health_interval),
            body_bytes_max: self.max_body_size.0 as usize,
            connections_max: self.max_connections as usize,
            drain: Duration::from_secs(u64::from(self.shutdown_timeout)),
            seed: base::Clock::unix_ms(&base::SystemClock::new()),
            ..Config::default()
        })
    }

    /// Reachable from other machines, while neither router nor replicas are known to ask for a key.
    pub fn is_wide_open(&self) -> bool {
        let is_loopback =
            self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        // With a key for replicas and none for clients, everyone who reaches the port speaks with that key.
        !is_loopback && self.api_key.is_empty() && self.api_key_file.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        flags: RouteFlags,
    }

    fn meant(args: &[&str]) -> Result<Config, Failure> {
        Only::try_parse_from([&["t"], args].concat()).unwrap().flags.meant()
    }

    #[test]
    fn replicas_are_addresses_and_each_is_named_once() {
        let config = meant(&["http://a:1", "b:2"]).unwrap();
        assert_eq!(config.replicas.len(), 2);
        let refused = |args: &[&str]| meant(args).unwrap_err().message;
        assert!(refused(&[]).contains("at least one REPLICA"));
        assert!(refused(&["https://a"]).contains("plain http://"));
        assert!(refused(&["a:1", "http://a:1/v1"]).contains("named twice"));
    }

    #[test]
    fn every_policy_of_the_router_has_its_name_here() {
        let names: Vec<_> = PolicyName::value_variants()
            .iter()
            .map(|policy| (policy.to_possible_value().unwrap().get_name().to_owned(), policy.meant().name()))
            .collect();
        assert_eq!(names.len(), Policy::NAMES.len());
        assert!(names.iter().all(|(typed, meant)| typed == meant), "{names:?}");
    }
}
