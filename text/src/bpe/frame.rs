//! Tokens that belong around a text (begin and end of sequence), as the `post_processor` says.

use base::TokenId;
use serde_json::Value;

/// What goes before and after.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Frame {
    pub before: Vec<TokenId>,
    pub after: Vec<TokenId>,
}

impl Frame {
    /// Reads the `post_processor` of a `tokenizer.json`; the name of one that is not known is the error.
    pub fn read(value: &Value) -> Result<Self, String> {
        match value["type"].as_str() {
            None if value.is_null() => Ok(Self::default()),
            // Changes offsets only.
            Some("ByteLevel") => Ok(Self::default()),
            Some("TemplateProcessing") => Self::template(value).ok_or_else(|| "a template of tokens".into()),
            Some("Sequence") => {
                let steps = value["processors"].as_array().map_or(&[][..], Vec::as_slice);
                steps.iter().try_fold(Self::default(), |frame, step| Ok(frame.inside(Self::read(step)?)))
            }
            other => Err(format!("post-processor {}", other.unwrap_or("without a type"))),
        }
    }

    fn template(value: &Value) -> Option<Self> {
        let (mut before, mut after, mut seen) = (Vec::new(), Vec::new(), 0);
        for item in value["single"].as_array()? {
            if !item["Sequence"].is_null() {
                seen += 1;
                continue;
            }
            let name = item["SpecialToken"]["id"].as_str()?;
            let ids = value["special_tokens"][name]["ids"].as_array()?;
            let ids =
                ids.iter().map(|id| TokenId::try_from(id.as_u64()?).ok()).collect::<Option<Vec<_>>>()?;
            if seen == 0 { before.extend(ids) } else { after.extend(ids) }
        }
        (seen == 1).then_some(Self { before, after })
    }

    fn inside(self, outer: Self) -> Self {
        let before = [outer.before, self.before].concat();
        let after = [self.after, outer.after].concat();
        Self { before, after }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_template_gives_what_stands_around_the_text() {
        let special = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
        let template = json!({"type": "TemplateProcessing",
            "single": [special("<s>"), {"Sequence": {"id": "A", "type_id": 0}}, special("</s>")],
            "special_tokens": {"<s>": {"ids": [1]}, "</s>": {"ids": [2, 3]}}});
        let steps = json!({"type": "Sequence", "processors": [{"type": "ByteLevel"}, template]});
        assert_eq!(Frame::read(&steps), Ok(Frame { before: vec![1], after: vec![2, 3] }));
        assert_eq!(Frame::read(&Value::Null), Ok(Frame::default()));
        let roberta = json!({"type": "RobertaProcessing"});
        assert_eq!(Frame::read(&roberta), Err("post-processor RobertaProcessing".into()));
    }
}
