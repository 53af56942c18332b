//! The pages of `docs/reference`, written by the parser that they describe.

use std::fmt::Write;

use crate::args::command;
use crate::failure::Exit;

/// Which page.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Page {
    Cli,
    Config,
}

impl Page {
    pub fn render(self) -> String {
        match self {
            Page::Cli => cli(),
            Page::Config => config(),
        }
    }
}

/// `docs/reference/cli.md`.
fn cli() -> String {
    let mut page = String::from(CLI_HEAD);
    for (code, meaning) in Exit::ALL {
        writeln!(page, "| {code} | {meaning} |").expect("writing to a string");
    }
    let mut root = command().term_width(100);
    root.build();
    help_of(&mut root, &mut page);
    page
}

/// This command's help and that of all below it.
fn help_of(command: &mut clap::Command, page: &mut String) {
    let name = command.get_bin_name().unwrap_or(command.get_name()).to_owned();
    let help = command.render_long_help().to_string();
    let lines = help.lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
    write!(page, "\n## {name}\n\n```text\n{}\n```\n", lines.trim_end()).expect("writing to a string");
    for below in command.get_subcommands_mut() {
        if !below.is_hide_set() && below.get_name() != "help" {
            help_of(below, page);
        }
    }
}

const CLI_HEAD: &str = "\
# Commands

`quire` without arguments is `quire up`. A command that fails prints `error: …` and mostly `hint: …` to standard
error, and ends with one of these codes:

| code | meaning |
|---|---|
";

/// `docs/reference/config.md`.
fn config() -> String {
    let command = command();
    let serve = command.find_subcommand("serve").expect("a command of ours");
    let mut page = String::from(CONFIG_HEAD);
    let mut heading = None;
    for arg in serve.get_arguments() {
        let Some(long) = arg.get_long() else { continue };
        if ["help", "version", "config", "no-enable-prefix-caching"].contains(&long) {
            continue;
        }
        if heading != arg.get_help_heading() {
            heading = arg.get_help_heading();
            page += &format!(
                "\n## {}\n\n| key | default | environment | meaning |\n|---|---|---|---|\n",
                heading.unwrap_or("Options")
            );
        }
        page += &row(long, arg);
    }
    page
}

const CONFIG_HEAD: &str = "\
# Configuration

Every setting is a flag of `quire serve`, an environment variable, and a key of the TOML file that `--config`
names. A flag wins over the environment, the environment over the file, the file over the default. A list is
`key = [\"a\", \"b\"]`; a switch is `key = true`. `model = \"PATH\"` names the model in the file. A key that
does not exist refuses to start. `quire config show` prints each value with its source, `quire config check
FILE` checks a file.
";

fn row(long: &str, arg: &clap::Arg) -> String {
    let default: Vec<_> = arg.get_default_values().iter().map(|v| v.to_string_lossy().into_owned()).collect();
    let help = arg.get_help().map(|h| h.to_string()).unwrap_or_default();
    let values: Vec<_> = arg.get_possible_values().iter().map(|v| format!("`{}`", v.get_name())).collect();
    let one_of = match values.is_empty() || values.len() == 2 && values[0] == "`true`" {
        true => String::new(),
        false => format!("; one of {}", values.join(", ")),
    };
    let env = arg.get_env().map(|e| e.to_string_lossy().into_owned()).unwrap_or_default();
    let default = if default.is_empty() { String::new() } else { format!("`{}`", default.join(",")) };
    format!("| `{long}` | {default} | `{env}` | {}{one_of} |\n", help.replace('|', "\\|"))
}
