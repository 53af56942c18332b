//! CPU time per prompt: ours, ours with the cache, the `tokenizers` crate; and of rendering the prompt.
//!
//! `cargo bench -p quire-text --bench tokenize [-- TOKENIZER_JSON [TEXT]]`; without arguments a tokenizer
//! trained on the documentation tokenizes the documentation. Each size is measured in rounds that alternate
//! the encoders, each prompt's best round counts; every encoder's tokens are hashed, and a different hash is a failure.
//! "cold" is a text that was not seen before, with word caches as the texts before it left them.

#[path = "../tests/trained.rs"]
#[expect(dead_code, reason = "shared with the tests, which use more of it")]
mod trained;

use std::sync::Arc;

use base::{Bytes, Clock, SystemClock, TokenId};
use quire_text::files::ModelFiles;
use quire_text::{AddSpecials, ChatPrompt, Prompter, Rendered, Text, Turn};
use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

const ROUNDS: usize = 5;
const SIZES: [usize; 3] = [1200, 32_000, 220_000];
const PROMPTS_MAX: usize = 40;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let json = match args.first() {
        Some(file) => std::fs::read(file).unwrap(),
        None => trained::byte_level(trained::SPLITS[2].1).to_string().into_bytes(),
    };
    let text = args.get(1).map_or_else(|| trained::CORPUS.repeat(8), |f| std::fs::read_to_string(f).unwrap());
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), &json).unwrap();
    let clock = SystemClock::new();
    let start = clock.now();
    let reference = Tokenizer::from_bytes(&json).unwrap();
    let parsed = clock.now();
    let ours = Arc::new(Text::load(&ModelFiles::Dir(dir.path().to_owned())).unwrap());
    let loaded = clock.now();
    println!(
        "encoder {:?}; reference loads in {} ms, all of it in {} ms",
        ours.encoder(),
        (parsed.0 - start.0) / 1_000_000,
        (loaded.0 - parsed.0) / 1_000_000
    );
    for size in SIZES {
        measure(&clock, &ours, &reference, &prompts(&text, size), size);
    }
    render(&clock);
}

fn prompts(text: &str, size: usize) -> Vec<&str> {
    let cut = |at: usize| (0..=at).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    (0..text.len() / size).take(PROMPTS_MAX).map(|n| &text[cut(n * size)..cut((n + 1) * size)]).collect()
}

/// Smallest time of each prompt over the rounds, in µs, and a hash of all tokens.
struct Figure {
    name: &'static str,
    best_us: Vec<f64>,
    hash: u64,
}

impl Figure {
    fn new(name: &'static str, prompts: usize) -> Self {
        Self { name, best_us: vec![f64::MAX; prompts], hash: 0 }
    }

    fn mean_us(&self) -> f64 {
        self.best_us.iter().sum::<f64>() / self.best_us.len() as f64
    }
}

type Encode<'a> = &'a dyn Fn(&str) -> Vec<TokenId>;

fn measure(clock: &SystemClock, ours: &Arc<Text>, reference: &Tokenizer, prompts: &[&str], size: usize) {
    let cached = Prompter::from_text(Arc::clone(ours), Bytes(1 << 28));
    let own = |text: &str| ours.encode(text, AddSpecials::No).unwrap();
    let kept =
        |text: &str| cached.tokens(&Rendered { text: text.to_owned(), specials: AddSpecials::No }).unwrap();
    let theirs = |text: &str| reference.encode_fast(text, false).unwrap().get_ids().to_vec();
    let mut figures: Vec<(Figure, Encode<'_>)> = vec![
        (Figure::new("own, cold", prompts.len()), &own),
        (Figure::new("own", prompts.len()), &own),
        (Figure::new("own, cached", prompts.len()), &kept),
        (Figure::new("tokenizers", prompts.len()), &theirs),
    ];
    let mut tokens = 0;
    for round in 0..ROUNDS {
        for (figure, encode) in &mut figures {
            if figure.name == "own, cold" && round > 0 {
                continue;
            }
            let (mut hash, mut count) = (0u64, 0);
            for (prompt, best_us) in prompts.iter().zip(&mut figure.best_us) {
                let start = clock.now();
                let ids = encode(prompt);
                *best_us = best_us.min((clock.now().0 - start.0) as f64 / 1000.0);
                count += ids.len();
                hash = ids.iter().fold(hash, |hash, id| {
                    (hash.rotate_left(5) ^ u64::from(*id)).wrapping_mul(0x9E37_79B9_7F4A_7C15)
                });
            }
            (figure.hash, tokens) = (hash, count / prompts.len());
        }
    }
    let last = figures[3].0.mean_us();
    for (figure, _) in &figures {
        assert_eq!(figure.hash, figures[3].0.hash, "{} disagrees", figure.name);
        println!(
            "{size:>7} B {tokens:>6} tokens  {:<12} {:>9.1} us  {:>7.1} MB/s  {:>6.1}x  hash {:016x}",
            figure.name,
            figure.mean_us(),
            size as f64 / figure.mean_us(),
            last / figure.mean_us(),
            figure.hash
        );
    }
}

/// A template with what most have: a default system prompt, tools, roles, stripped thoughts.
const TEMPLATE: &str = r#"{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}
    {{- '# Tools\n<tools>' }}
    {%- for tool in tools %}{{- '\n' }}{{- tool | tojson }}{%- endfor %}
    {{- '\n</tools><|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1, open=true) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.open and message.role == 'user' and message.content is string and not message.content.startswith('<tool_response>') %}
        {%- set ns.open = false %}{%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == 'assistant' %}
        {%- if '</think>' in content %}{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}
        {{- '<|im_start|>assistant\n' + content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"#;

fn render(clock: &SystemClock) {
    let dir = tempfile::tempdir().unwrap();
    let json = trained::byte_level(trained::SPLITS[2].1).to_string();
    std::fs::write(dir.path().join("tokenizer.json"), json).unwrap();
    std::fs::write(dir.path().join("chat_template.jinja"), TEMPLATE).unwrap();
    let text = Text::load(&ModelFiles::Dir(dir.path().to_owned())).unwrap();
    let simple = Text::synthetic(300).unwrap();
    for (bytes, messages) in [(1200, 3), (32_000, 3), (32_000, 25)] {
        let list: Vec<Value> = (0..messages)
            .map(|n| {
                let role = ["system", "user", "assistant"][if n == 0 { 0 } else { 2 - n % 2 }];
                let content: String = trained::CORPUS.chars().take(bytes / messages).collect();
                json!({"role": role, "content": content})
            })
            .collect();
        let (messages, none, kwargs) = (Value::Array(list), Value::Null, Map::new());
        let prompt = ChatPrompt {
            messages: &messages,
            tools: &none,
            documents: &none,
            kwargs: &kwargs,
            turn: Turn::Answer,
            unix_ms: 0,
        };
        for (name, text) in [("one loop", &simple), ("branches", &text)] {
            let best = (0..ROUNDS * 20).map(|_| {
                let start = clock.now();
                assert!(text.render(&prompt).unwrap().len() > bytes / 2);
                clock.now().0 - start.0
            });
            println!(
                "render {bytes} B in {} messages, {name}: {:.1} us",
                messages.as_array().unwrap().len(),
                best.min().unwrap() as f64 / 1000.0
            );
        }
    }
}
