//! Chat templates: Jinja as Hugging Face models write it.
//!
//! minijinja with what `transformers` adds to Jinja2: `raise_exception`, `strftime_now`, `tojson` in
//! Python's spelling, `{% generation %}`, loop controls, and Python's methods on strings, lists and
//! maps. Time comes in with the prompt, so that the same prompt renders the same twice.

use minijinja::value::{Kwargs, Value as Jinja};
use minijinja::{Environment, Error, ErrorKind, State};
use serde_json::Value;

use crate::strftime::strftime;
use crate::text::TextError;

/// Texts of the special tokens, which templates print.
#[derive(Clone, Debug, Default)]
pub(crate) struct SpecialNames {
    pub bos: Option<String>,
    pub eos: Option<String>,
    pub unk: Option<String>,
    pub pad: Option<String>,
}

/// Whose turn it is after the messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The assistant answers (`add_generation_prompt`).
    Answer,
    /// The last message is open-ended and is continued (`continue_final_message`).
    Continue,
    /// Neither: the messages only.
    None,
}

/// A conversation to render.
#[derive(Clone, Debug)]
pub struct ChatPrompt<'a> {
    /// An array of objects with `role` and `content`.
    pub messages: &'a Value,
    /// Null or an array, as given.
    pub tools: &'a Value,
    pub documents: &'a Value,
    /// Further variables for the template (`chat_template_kwargs`).
    pub kwargs: &'a serde_json::Map<String, Value>,
    pub turn: Turn,
    pub unix_ms: u64,
}

/// The compiled template or templates.
#[derive(Debug)]
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    names: SpecialNames,
    has_tool_use: bool,
    knows_developer_role: bool,
}

/// Where `strftime_now` finds the time; no template would use this name.
const NOW: &str = "__unix_ms";
const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

impl ChatTemplate {
    /// Compiles `(name, source)` pairs; the first stands in if none is called "default".
    pub fn compile(mut sources: Vec<(String, String)>, names: SpecialNames) -> Result<Self, TextError> {
        if !sources.iter().any(|(name, _)| name == DEFAULT) {
            sources[0].0 = DEFAULT.into();
        }
        let has_tool_use = sources.iter().any(|(name, _)| name == TOOL_USE);
        let knows_developer_role = sources.iter().any(|(_, source)| source.contains("developer"));
        let mut environment = environment();
        for (name, source) in sources {
            let source = without_generation_tags(&source);
            environment
                .add_template_owned(name, source)
                .map_err(|e| TextError::Parse { file: "chat template".into(), message: describe(&e) })?;
        }
        Ok(Self { environment, names, has_tool_use, knows_developer_role })
    }

    pub fn knows_developer_role(&self) -> bool {
        self.knows_developer_role
    }

    pub fn render(&self, prompt: &ChatPrompt<'_>) -> Result<String, TextError> {
        let with_tools = prompt.tools.as_array().is_some_and(|tools| !tools.is_empty());
        let name = if with_tools && self.has_tool_use { TOOL_USE } else { DEFAULT };
        let fail = |e: Error| TextError::Template(describe(&e));
        let template = self.environment.get_template(name).map_err(fail)?;
        let rendered = template.render(self.context(prompt)).map_err(fail)?;
        match prompt.turn {
            Turn::Continue => cut_after_last(rendered, prompt.messages),
            _ => Ok(rendered),
        }
    }

    fn context(&self, prompt: &ChatPrompt<'_>) -> Jinja {
        let text = |name: &Option<String>| name.as_deref().map_or(Jinja::UNDEFINED, Jinja::from);
        // `none` for absent tools: templates ask both `if tools` and `tools is not none`.
        let mut pairs: Vec<(String, Jinja)> = vec![
            ("messages".into(), Jinja::from_serialize(prompt.messages)),
            ("tools".into(), Jinja::from_serialize(prompt.tools)),
            ("documents".into(), Jinja::from_serialize(prompt.documents)),
            ("add_generation_prompt".into(), Jinja::from(prompt.turn == Turn::Answer)),
            ("bos_token".into(), text(&self.names.bos)),
            ("eos_token".into(), text(&self.names.eos)),
            ("unk_token".into(), text(&self.names.unk)),
            ("pad_token".into(), text(&self.names.pad)),
            (NOW.into(), Jinja::from(prompt.unix_ms)),
        ];
        let extra = prompt.kwargs.iter().map(|(key, value)| (key.clone(), Jinja::from_serialize(value)));
        pairs.extend(extra);
        pairs.into_iter().collect()
    }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> Result<Jinja, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", |state: &State<'_, '_>, format: String| {
        let now = state.lookup(NOW).and_then(|v| u64::try_from(v).ok()).unwrap_or(0);
        strftime(&format, now)
    });
    environment.add_filter("tojson", tojson);
    environment
}

/// The message a client can act on: what failed, and on which line of the template.
fn describe(error: &Error) -> String {
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("{detail} (line {line})"),
        None => detail,
    }
}

/// `{% generation %}` marks the assistant's text for training and means nothing here; the whitespace
/// control of the tags must keep working, so they become an `if` that is always true.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let tag = &rest[start..start + length];
        let word =
            tag.trim_start_matches("{%").trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace());
        out.push_str(&rest[..start]);
        match word {
            "generation" => out.push_str(&tag.replacen("generation", "if true", 1)),
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endif", 1)),
            _ => out.push_str(tag),
        }
        rest = &rest[start + length..];
    }
    out.push_str(rest);
    out
}

/// Ends the prompt right after the last message's content.
fn cut_after_last(mut rendered: String, messages: &Value) -> Result<String, TextError> {
    let last = messages.as_array().and_then(|m| m.last());
    let content = last.and_then(|m| m["content"].as_str()).map(str::trim).unwrap_or("");
    match rendered.rfind(content) {
        Some(at) if !content.is_empty() => {
            rendered.truncate(at + content.len());
            Ok(rendered)
        }
        _ => Err(TextError::Template("the final message has no content that could be continued".into())),
    }
}

/// `json.dumps`: `, ` and `: ` between items, `indent`, `ensure_ascii`, `sort_keys`, no HTML escapes.
fn tojson(value: Jinja, kwargs: Kwargs) -> Result<Jinja, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let ascii: Option<bool> = kwargs.get("ensure_ascii")?;
    let sort: Option<bool> = kwargs.get("sort_keys")?;
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    kwargs.assert_all_used()?;
    let json =
        serde_json::to_value(&value).map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    let default_comma = if indent.is_some() { "," } else { ", " };
    let mut style = JsonStyle {
        indent,
        ascii: ascii.unwrap_or(false),
        sort: sort.unwrap_or(false),
        comma: default_comma.into(),
        colon: ": ".into(),
    };
    if let Some([comma, colon]) = separators.as_deref() {
        (style.comma, style.colon) = (comma.clone(), colon.clone());
    }
    let mut out = String::new();
    style.write(&json, 0, &mut out);
    Ok(Jinja::from_safe_string(out))
}

struct JsonStyle {
    indent: Option<usize>,
    ascii: bool,
    sort: bool,
    comma: String,
    colon: String,
}

impl JsonStyle {
    fn write(&self, value: &Value, depth: usize, out: &mut String) {
        match value {
            Value::Array(items) => {
                let items: Vec<_> = items.iter().map(|item| (None, item)).collect();
                self.write_items(['[', ']'], &items, depth, out);
            }
            Value::Object(map) => {
                let mut items: Vec<_> = map.iter().map(|(key, item)| (Some(key), item)).collect();
                if self.sort {
                    items.sort_by_key(|(key, _)| *key);
                }
                self.write_items(['{', '}'], &items, depth, out);
            }
            Value::String(text) => self.write_string(text, out),
            other => out.push_str(&other.to_string()),
        }
    }

    fn write_items(
        &self,
        brackets: [char; 2],
        items: &[(Option<&String>, &Value)],
        depth: usize,
        out: &mut String,
    ) {
        out.push(brackets[0]);
        for (at, (key, item)) in items.iter().enumerate() {
            if at > 0 {
                out.push_str(&self.comma);
            }
            self.write_break(depth + 1, out);
            if let Some(key) = key {
                self.write_string(key, out);
                out.push_str(&self.colon);
            }
            self.write(item, depth + 1, out);
        }
        if !items.is_empty() {
            self.write_break(depth, out);
        }
        out.push(brackets[1]);
    }

    fn write_break(&self, depth: usize, out: &mut String) {
        if let Some(indent) = self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn write_string(&self, text: &str, out: &mut String) {
        let quoted = Value::from(text).to_string();
        if !self.ascii {
            return out.push_str(&quoted);
        }
        for c in quoted.chars() {
            if c.is_ascii() {
                out.push(c);
            } else {
                let mut units = [0; 2];
                c.encode_utf16(&mut units).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::json;

    use super::*;

    fn check(source: &str, turn: Turn, messages: Value, want: Expect) {
        let names = SpecialNames { bos: Some("<s>".into()), eos: Some("</s>".into()), ..Default::default() };
        let compiled = ChatTemplate::compile(vec![("default".into(), source.into())], names);
        let prompt = ChatPrompt {
            messages: &messages,
            tools: &json!([{"name": "f", "n": 1.5, "é": []}]),
            documents: &Value::Null,
            kwargs: &serde_json::Map::from_iter([("thinking".to_owned(), json!(true))]),
            turn,
            unix_ms: 1_735_689_600_000,
        };
        let rendered = compiled.and_then(|template| template.render(&prompt));
        want.assert_eq(&rendered.unwrap_or_else(|e| format!("error: {e}")));
    }

    fn talk() -> Value {
        json!([{"role": "system", "content": " be brief "}, {"role": "user", "content": "hi"}])
    }

    const CHATML: &str = "{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\\n' + m['content'].strip() + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}";

    #[test]
    fn renders_chatml_and_opens_the_answer() {
        check(
            CHATML,
            Turn::Answer,
            talk(),
            expect![[r#"
            <|im_start|>system
            be brief<|im_end|>
            <|im_start|>user
            hi<|im_end|>
            <|im_start|>assistant
        "#]],
        );
    }

    #[test]
    fn continues_the_final_message_without_closing_it() {
        check(
            CHATML,
            Turn::Continue,
            json!([{"role": "assistant", "content": "Once upon "}]),
            expect![[r#"
            <|im_start|>assistant
            Once upon"#]],
        );
    }

    #[test]
    fn speaks_the_python_of_real_templates() {
        let source = "{{ bos_token }}{% set ns = namespace(n=0, last='') %}
{%- for m in messages[::-1] %}{% set ns.n = ns.n + 1 %}{% if loop.first %}{% set ns.last = m.content %}{% continue %}{% endif %}
{%- if m.content is string and m.get('name') is none and 'brief' in m.content %}[{{ m.content.split(' ')[-2].upper() }}]{% endif %}
{%- endfor %}{{ ns.n }}{{ ns.last.startswith('h') }} {{ messages | map(attribute='role') | join('/') }}
{%- generation %} gen {% endgeneration %}
{{ strftime_now('%d %b %Y') }} {{ thinking }} {{ undefined_name is defined }} {{ 'a' ~ 1 }} {{ {'x': 1}.items() | list | length }}";
        check(
            source,
            Turn::None,
            talk(),
            expect![[r#"
            <s>[BRIEF]2True system/user gen 01 Jan 2025 True False a1 1"#]],
        );
    }

    /// The constructs of the reasoning and tool templates in circulation.
    #[test]
    fn strips_thoughts_and_walks_backwards_as_reasoning_templates_do() {
        let source = "{%- set ns = namespace(found=false, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
{%- set index = (messages|length - 1) - loop.index0 %}
{%- if not ns.found and message.role == 'user' and not (message.content.startswith('<r>') and message.content.endswith('</r>')) %}
{%- set ns.found = true %}{%- set ns.last = index %}
{%- endif %}
{%- endfor %}
{%- for message in messages %}
{%- if message.reasoning_content is string %}R{% elif '</think>' in message.content %}
{%- set thought = message.content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
{%- set rest = message.content.split('</think>')[-1].lstrip('\n') %}
({{ thought }}|{{ rest }})
{%- elif message.tool_calls %}
{%- for call in message.tool_calls %}{% set call = call.function if call.function else call %}{{ call.name }} {{ call.arguments | tojson }}{% endfor %}
{%- else %}[{{ loop.index0 }}{{ message.content }}]{% endif %}
{%- endfor %}{{ ns.last }}
{{- none }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ messages[1:] | length }}
{%- if (messages[0]['role'] == 'user') != (0 % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}
{%- if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %} {{ date_string }}";
        let messages = json!([
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "<think>\nhm\n</think>\n\nyes"},
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
            {"role": "user", "content": "<r>x</r>"},
        ]);
        check(
            source,
            Turn::Answer,
            messages,
            expect![[r#"[0q](hm|yes)f {"a": 1}[3<r>x</r>]0None23 01 Jan 2025"#]],
        );
    }

    #[test]
    fn tojson_writes_as_python_does() {
        check(
            "{{ tools | tojson }}\n{{ tools[0] | tojson(indent=2) }}\n{{ 'é<' | tojson(ensure_ascii=true) }}",
            Turn::None,
            talk(),
            expect![[r#"
            [{"name": "f", "n": 1.5, "é": []}]
            {
              "name": "f",
              "n": 1.5,
              "é": []
            }
            "\u00e9<""#]],
        );
    }

    #[test]
    fn raised_exceptions_name_their_reason() {
        check(
            "{{ raise_exception('roles must alternate') }}",
            Turn::None,
            talk(),
            expect!["error: the chat template failed: roles must alternate (line 1)"],
        );
        check(
            "{% if %}",
            Turn::None,
            talk(),
            expect!["error: chat template: unexpected end of block (line 1)"],
        );
    }
}
