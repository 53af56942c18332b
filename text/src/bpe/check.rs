//! The check at load: the encoder against the reference, with the model's own tokenizer.
//!
//! The samples touch what tokenizers differ in: cases, contractions, numbers, runs of whitespace and
//! newlines, scripts with and without spaces, marks, emoji, code, invisible and unassigned characters, the
//! mark `▁` itself; each alone, next to the tokenizer's own added tokens, and all of them as one text. It
//! takes a few milliseconds, and it is what makes a wrong assumption a warning instead of wrong tokens.

use tokenizers::Tokenizer;

use crate::bpe::Bpe;

/// Texts to agree on.
pub(crate) const SAMPLES: &[&str] = &[
    "",
    " ",
    "\n",
    "Hello, world! How're you? I'M fine, we'Ll see; it'\u{17f} o'clock, they've 'tis.",
    "The quick brown fox jumps over the lazy dog.\n\nA second paragraph,\r\nwith\tother  line   ends.\n\n\n \n",
    "   leading and trailing   ",
    "1 12 123 1234 12345 3.14159 1,000,000 ٣٤٥ Ⅷ ½ 2²",
    "fn main() {\n    let x: Vec<u32> = (0..10).map(|i| i * 2).collect();\n\tprintln!(\"{x:?}\");\n}\n",
    "for(int i=0;i<n;++i){a[i]+=b[i]&0xFF;}//comment\n/* block */\n#define X(a,b) a##b",
    "{\"role\": \"user\", \"content\": \"hi\\n\", \"n\": [1, 2.5, null, true]}",
    "https://example.com/a/b?c=d&e=%20#frag  user@example.org  C:\\path\\file.txt  ~/x_y-z.tar.gz",
    "camelCase PascalCase SCREAMING_CASE HTTPServer snake_case kebab-case iPhone XMLHttpRequest2",
    "Zażółć gęślą jaźń. Größe, naïve café, Ångström, ÉCOLE, İstanbul, ǅ ǆ.",
    "e\u{301} a\u{300}\u{323} \u{301}alone 각 \u{1112}\u{1161}\u{11ab} \u{212b} \u{2126}",
    "Съешь ещё этих мягких французских булок. Ελληνικά, ΕΛΛΑΣ. עברית מִקְרָא العربية مرحبا",
    "我能吞下玻璃而不伤身体。日本語のテキスト、カタカナと漢字。한국어 문장입니다! ไทย हिन्दी में",
    "😀 👍🏽 👨‍👩‍👧‍👦 🇩🇪 ❤️ ✨ →⇒≠ ½€£¥©™ «»“”‘’…—–",
    "\u{feff}\u{200b}zero\u{200d}width\u{a0}nbsp\u{3000}wide\u{2028}line\u{85}next\u{0}nul\u{7f}",
    "\u{378}\u{e000}\u{10ffff} ▁mark▁▁two ▁ ▁▁",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "--------------------------------====!!!!????....''''\"\"\"\"((()))[[]]{{}}<<>>||\n---\n***\n",
    "\t\t\tdeep\n\t\t  mixed \n    \n\n    four\r\n\r\n",
    "<|im_start|>user\nIgnore <s> and </s>, [INST] and <think> alike.<|im_end|>\n<|eot_id|><end_of_turn>",
    "Antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis xqzjkvbwpfh",
];

/// Added tokens that are tried beside every sample.
const ADDED_MAX: usize = 4;

/// A text for which the two give different tokens.
pub(crate) fn disagreement(bpe: &Bpe, tokenizer: &Tokenizer) -> Option<String> {
    let mut added: Vec<_> = tokenizer.get_added_tokens_decoder().into_iter().collect();
    added.sort_unstable_by_key(|(id, _)| *id);
    let all: String = added.iter().map(|(_, token)| token.content.as_str()).collect();
    let beside = added.iter().take(ADDED_MAX).flat_map(|(_, token)| {
        SAMPLES.iter().map(|sample| format!("{0}{sample}{0} {sample} {0}\n", token.content))
    });
    let whole = SAMPLES.concat();
    let alone = SAMPLES.iter().map(|sample| (*sample).to_owned());
    alone.chain(beside).chain([whole, all]).find(|text| differs(bpe, tokenizer, text))
}

fn differs(bpe: &Bpe, tokenizer: &Tokenizer, text: &str) -> bool {
    let mut own = Vec::new();
    bpe.encode(text, &mut own);
    let (before, after) = bpe.frame();
    let framed = [before, &own, after].concat();
    let reference = |specials: bool| tokenizer.encode_fast(text, specials).ok();
    reference(false).is_none_or(|r| r.get_ids() != own)
        || reference(true).is_none_or(|r| r.get_ids() != framed)
}
