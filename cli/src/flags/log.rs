//! What is logged, and how.

use clap::ValueEnum;
use clap::builder::BoolishValueParser;

/// The shape of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    /// One object a line
    Json,
}

/// As typed; nothing here needs a second form.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Logging")]
pub struct LogFlags {
    /// error, warn, info, debug, trace, or a filter such as quire_runtime=debug,info
    #[arg(long, value_name = "LEVEL", alias = "uvicorn-log-level", env = "QUIRE_LOG_LEVEL", hide_env_values = true,
          default_value = "info", value_parser = parse_level)]
    pub log_level: String,
    /// Shape of a log line
    #[arg(long, value_enum, env = "QUIRE_LOG_FORMAT", hide_env_values = true, default_value = "text")]
    pub log_format: LogFormat,
    /// Accepted for the sake of scripts written for vLLM: no line is logged for each request anyway
    #[arg(long, value_name = "BOOL", env = "QUIRE_DISABLE_LOG_REQUESTS", hide_env_values = true,
          num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true",
          value_parser = BoolishValueParser::new(), action = clap::ArgAction::Set)]
    pub disable_log_requests: bool,
}

impl LogFlags {
    /// For commands that are not servers: only what went wrong.
    pub fn quiet() -> Self {
        Self { log_level: "warn".into(), log_format: LogFormat::Text, disable_log_requests: true }
    }
}

/// Takes uvicorn's names as well; anything with `=` or `,` is a filter.
fn parse_level(text: &str) -> Result<String, String> {
    let level = match text.to_ascii_lowercase().as_str() {
        "critical" => "error".to_owned(),
        "warning" => "warn".to_owned(),
        "off" | "error" | "warn" | "info" | "debug" | "trace" => text.to_ascii_lowercase(),
        _ if text.contains(['=', ',']) => text.to_owned(),
        _ => {
            return Err("use error, warn, info, debug, trace, or a filter such as quire_runtime=debug".into());
        }
    };
    match tracing_subscriber::EnvFilter::try_new(&level) {
        Ok(_) => Ok(level),
        Err(e) => Err(e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_take_uvicorns_names_and_filters() {
        assert_eq!(parse_level("WARNING").unwrap(), "warn");
        assert_eq!(parse_level("critical").unwrap(), "error");
        assert_eq!(parse_level("quire_runtime=debug,info").unwrap(), "quire_runtime=debug,info");
        assert!(parse_level("loud").is_err());
        assert!(parse_level("a=loud").is_err());
    }
}
