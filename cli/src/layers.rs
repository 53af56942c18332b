//! Flag > environment > file > default, resolved by the one parser that knows the flags.
//!
//! The file's keys are the long flag names, so the file is turned into flags and parsed again, instead of
//! a second set of structs that would drift from the first: a value means the same in both places, is
//! checked by the same code, and a new flag is a new key without another line. Only keys that neither the
//! command line nor the environment set are turned into flags; they go before what was typed.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{ArgMatches, Command};

use crate::failure::Failure;

/// Largest configuration file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Keys of the command line only: a file that names another file, or asks for help, means nothing.
const NOT_IN_FILES: [&str; 5] = ["config", "help", "version", "json", "no-enable-prefix-caching"];
/// Never printed.
const SECRET: [&str; 4] = ["api-key", "admin-key", "metrics-key", "replica-key"];

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Default,
    File(PathBuf),
    Env(String),
    Flag,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Default => f.write_str("default"),
            Source::File(path) => write!(f, "file {}", path.display()),
            Source::Env(name) => write!(f, "env {name}"),
            Source::Flag => f.write_str("flag"),
        }
    }
}

/// One setting as it will be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    pub key: String,
    /// `None`: decided while starting (from the model, the machine).
    pub value: Option<String>,
    pub source: Source,
}

/// The command line with the file's values in it.
pub struct Resolved {
    pub matches: ArgMatches,
    pub settings: Vec<Setting>,
}

/// Parses `argv`, reads the file it names, and parses again with the file's keys in their place.
pub fn resolve(command: &Command, argv: &[OsString]) -> Result<Resolved, ResolveError> {
    let first = command.clone().try_get_matches_from(argv)?;
    let (sub, matches, depth) = deepest(command, &first);
    let file = match config_path(matches) {
        Some(path) => Some((path.clone(), read(&path)?)),
        None => None,
    };
    let Some((path, entries)) = file else {
        let settings = settings(sub, matches, None);
        return Ok(Resolved { settings, matches: first });
    };
    let keys = known_keys(sub);
    let mut argv: Vec<OsString> = argv.to_vec();
    let mut taken = Vec::new();
    let mut typed = Vec::new();
    for (key, value) in entries {
        let arg = keys.iter().find(|a| a.key == key).ok_or_else(|| unknown(&path, &key, &keys))?;
        if is_set(matches, &arg.id) {
            continue;
        }
        typed.extend(as_flags(&path, arg, &value)?);
        taken.push(arg.id.clone());
    }
    argv.splice(1 + depth..1 + depth, typed);
    let again = command.clone().try_get_matches_from(&argv).map_err(|e| in_file(&path, e))?;
    let (sub, matches, _) = deepest(command, &again);
    let settings = settings(sub, matches, Some((&path, &taken)));
    Ok(Resolved { settings, matches: again })
}

/// Checks a file against the flags of `command`, which is parsed with nothing else.
pub fn check(command: &Command, path: &Path, argv: &[&str]) -> Result<Vec<Setting>, ResolveError> {
    let mut argv: Vec<OsString> = argv.iter().map(OsString::from).collect();
    argv.push("--config".into());
    argv.push(path.into());
    let resolved = resolve(command, &argv)?;
    Ok(resolved.settings.into_iter().filter(|s| matches!(s.source, Source::File(_))).collect())
}

/// Either clap's own message, which it prints best itself, or ours.
#[derive(Debug)]
pub enum ResolveError {
    Clap(clap::Error),
    Failure(Failure),
}

impl From<clap::Error> for ResolveError {
    fn from(error: clap::Error) -> Self {
        Self::Clap(error)
    }
}

impl From<Failure> for ResolveError {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

/// The closest of `known` to `typed`, if it is close.
pub fn did_you_mean<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|k| (strsim::jaro_winkler(typed, k), k))
        .filter(|(score, _)| *score > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, k)| k)
}

struct Known {
    id: String,
    key: String,
    positional: bool,
}

fn deepest<'a>(command: &'a Command, matches: &'a ArgMatches) -> (&'a Command, &'a ArgMatches, usize) {
    let (mut command, mut matches, mut depth) = (command, matches, 0);
    while let Some((name, inner)) = matches.subcommand() {
        let Some(next) = command.find_subcommand(name) else { break };
        (command, matches, depth) = (next, inner, depth + 1);
    }
    (command, matches, depth)
}

fn config_path(matches: &ArgMatches) -> Option<PathBuf> {
    matches.try_get_one::<PathBuf>("config").ok().flatten().cloned()
}

fn is_set(matches: &ArgMatches, id: &str) -> bool {
    matches!(matches.value_source(id), Some(ValueSource::CommandLine | ValueSource::EnvVariable))
}

fn known_keys(command: &Command) -> Vec<Known> {
    command
        .get_arguments()
        .filter_map(|arg| {
            let key = arg.get_long().unwrap_or(arg.get_id().as_str()).to_owned();
            (!NOT_IN_FILES.contains(&key.as_str())).then(|| Known {
                id: arg.get_id().to_string(),
                key,
                positional: arg.is_positional(),
            })
        })
        .collect()
}

fn read(path: &Path) -> Result<toml::Table, Failure> {
    let shown = path.display();
    let size =
        std::fs::metadata(path).map_err(|e| Failure::usage(format!("cannot read --config {shown}: {e}")))?;
    if size.len() > FILE_BYTES_MAX {
        return Err(Failure::usage(format!(
            "--config {shown} is larger than {}",
            base::bytes_human(FILE_BYTES_MAX)
        )));
    }
    let text = std::fs::read_to_string(path)
        .map_err(|e| Failure::usage(format!("cannot read --config {shown}: {e}")))?;
    text.parse::<toml::Table>().map_err(|e| {
        let line = e.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        Failure::usage(format!("{shown}:{line}: {}", e.message().replace('\n', "; ")))
    })
}

fn as_flags(path: &Path, arg: &Known, value: &toml::Value) -> Result<Vec<OsString>, Failure> {
    let values = match value {
        toml::Value::Array(values) => values.iter().collect(),
        one => vec![one],
    };
    values
        .into_iter()
        .map(|value| {
            let text = scalar(value).ok_or_else(|| {
                let (path, key, kind) = (path.display(), &arg.key, value.type_str());
                Failure::usage(format!(
                    "{path}: key `{key}` wants a plain value or a list of them, not a {kind}"
                ))
            })?;
            Ok(if arg.positional { text.into() } else { format!("--{}={text}", arg.key).into() })
        })
        .collect()
}

fn scalar(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(s) => Some(s.clone()),
        toml::Value::Integer(i) => Some(i.to_string()),
        toml::Value::Float(f) => Some(f.to_string()),
        toml::Value::Boolean(b) => Some(b.to_string()),
        _ => None,
    }
}

fn unknown(path: &Path, key: &str, keys: &[Known]) -> Failure {
    let failure = Failure::usage(format!("{}: unknown key `{key}`", path.display()));
    let dashed = key.replace('_', "-");
    match did_you_mean(&dashed, keys.iter().map(|k| k.key.as_str())) {
        Some(near) => failure.hint(format!("did you mean `{near}`?")),
        None => failure.hint("the keys are the long flag names; `quire config show` lists them"),
    }
}

/// Clap speaks of flags; say that they came from the file, and keep its first line.
fn in_file(path: &Path, error: clap::Error) -> Failure {
    let text = error.render().to_string();
    let line = text.lines().next().unwrap_or_default();
    let what = line.strip_prefix("error: ").unwrap_or(line);
    Failure::usage(format!("{}: {what}", path.display()))
}

fn settings(command: &Command, matches: &ArgMatches, file: Option<(&Path, &Vec<String>)>) -> Vec<Setting> {
    known_keys(command)
        .into_iter()
        .map(|arg| {
            let from_file = file.filter(|(_, taken)| taken.contains(&arg.id));
            let source = match (matches.value_source(&arg.id), from_file) {
                (Some(ValueSource::CommandLine), Some((path, _))) => Source::File(path.to_owned()),
                (Some(ValueSource::CommandLine), None) => Source::Flag,
                (Some(ValueSource::EnvVariable), _) => Source::Env(env_name(command, &arg.id)),
                _ => Source::Default,
            };
            let (value, source) = switched_off(matches, &arg.key).unwrap_or((shown(matches, &arg), source));
            Setting { key: arg.key, value, source }
        })
        .collect()
}

/// `--no-X` speaks for the key `X`.
fn switched_off(matches: &ArgMatches, key: &str) -> Option<(Option<String>, Source)> {
    let id = format!("no_{}", key.replace('-', "_"));
    let off = matches.try_get_one::<bool>(&id).ok().flatten().copied().unwrap_or(false);
    off.then(|| (Some("false".into()), Source::Flag))
}

fn env_name(command: &Command, id: &str) -> String {
    let arg = command.get_arguments().find(|a| a.get_id() == id);
    arg.and_then(|a| a.get_env()).map(|e| e.to_string_lossy().into_owned()).unwrap_or_default()
}

fn shown(matches: &ArgMatches, arg: &Known) -> Option<String> {
    let values: Vec<String> =
        matches.get_raw(&arg.id)?.map(|value| value.to_string_lossy().into_owned()).collect();
    match values.as_slice() {
        [] => None,
        _ if SECRET.contains(&arg.key.as_str()) => Some(format!("({} set)", values.len())),
        _ => Some(values.join(",")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::command;
    use expect_test::{Expect, expect};

    /// Resolves `quire serve` with a file of this content; shows what is not a default, or the error.
    fn check_file(content: &str, args: &[&str], expect: Expect) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("quire.toml");
        std::fs::write(&path, content).unwrap();
        let mut argv: Vec<OsString> = vec!["quire".into(), "serve".into()];
        argv.extend(args.iter().map(OsString::from));
        argv.extend(["--config".into(), path.clone().into()]);
        let shown = match resolve(&command(), &argv) {
            Ok(resolved) => resolved
                .settings
                .iter()
                .filter(|s| s.source != Source::Default)
                .map(|s| format!("{} = {} ({})\n", s.key, s.value.as_deref().unwrap_or("-"), s.source))
                .collect(),
            Err(ResolveError::Failure(failure)) => failure.to_string(),
            Err(ResolveError::Clap(error)) => error.to_string(),
        };
        expect.assert_eq(&shown.replace(path.to_str().unwrap(), "FILE"));
    }

    #[test]
    fn a_flag_beats_the_file_and_the_file_beats_the_default() {
        check_file(
            "port = 9000\nhost = \"0.0.0.0\"\nmodel = \"/m\"\nserved-model-name = [\"a\", \"b\"]\n",
            &["--port", "9001"],
            expect![[r#"
                model = /m (file FILE)
                host = 0.0.0.0 (file FILE)
                port = 9001 (flag)
                served-model-name = a,b (file FILE)
            "#]],
        );
    }

    #[test]
    fn a_switch_typed_beats_the_file() {
        check_file(
            "enable-prefix-caching = true\ndisable-log-requests = true\n",
            &["--no-enable-prefix-caching"],
            expect![[r#"
                enable-prefix-caching = false (flag)
                disable-log-requests = true (file FILE)
            "#]],
        );
    }

    #[test]
    fn an_unknown_key_refuses_and_suggests() {
        check_file(
            "prot = 1",
            &[],
            expect![[r#"
                error: FILE: unknown key `prot`
                hint: did you mean `port`?"#]],
        );
        check_file(
            "max_model_len = 1",
            &[],
            expect![[r#"
                error: FILE: unknown key `max_model_len`
                hint: did you mean `max-model-len`?"#]],
        );
        check_file(
            "zzz = 1",
            &[],
            expect![[r#"
                error: FILE: unknown key `zzz`
                hint: the keys are the long flag names; `quire config show` lists them"#]],
        );
    }

    #[test]
    fn a_bad_value_names_the_file() {
        check_file(
            "port = 99999",
            &[],
            expect!["error: FILE: invalid value '99999' for '--port <PORT>': 99999 is not in 0..=65535"],
        );
        check_file(
            "port = {a = 1}",
            &[],
            expect!["error: FILE: key `port` wants a plain value or a list of them, not a table"],
        );
        check_file(
            "# a comment\nport = ",
            &[],
            expect!["error: FILE:2: string values must be quoted, expected literal string"],
        );
    }

    #[test]
    fn keys_are_never_shown() {
        check_file(
            "api-key = [\"s3cret\"]\nadmin-key = \"s3cret\"\nmetrics-key = \"s3cret\"",
            &[],
            expect![[r#"
                api-key = (1 set) (file FILE)
                admin-key = (1 set) (file FILE)
                metrics-key = (1 set) (file FILE)
            "#]],
        );
    }
}
