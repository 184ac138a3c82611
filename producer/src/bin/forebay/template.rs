//! Turns a line of text into the JSON of a job.
//! In: a template with `{}` inside its strings, and lines. Out: JSON, whatever the line holds.

use serde_json::Value;

/// What a line becomes unless told otherwise.
pub(crate) const PATH: &str = r#"{"path": "{}"}"#;

/// A template, cut at its placeholders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template {
    parts: Vec<String>,
}

impl Template {
    /// Reads a template: JSON with at least one `{}` inside a string. Outside of strings `{}` is
    /// the empty object, as always.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if let Err(why) = serde_json::from_str::<Value>(text) {
            return Err(format!("it is not JSON: {why}"));
        }
        let parts = cut_at_placeholders(text);
        if parts.len() < 2 {
            return Err(r#"no string in it has {} for the line; write {"path": "{}"}"#.to_owned());
        }
        Ok(Self { parts })
    }

    /// The JSON for one line.
    pub(crate) fn fill(&self, line: &str) -> String {
        let quoted = Value::from(line).to_string();
        self.parts.join(&quoted[1..quoted.len() - 1])
    }
}

fn cut_at_placeholders(json: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut characters = json.chars().peekable();
    let mut in_string = false;
    while let Some(c) = characters.next() {
        if in_string && c == '{' && characters.next_if_eq(&'}').is_some() {
            parts.push(String::new());
            continue;
        }
        in_string ^= c == '"';
        let escaped = (in_string && c == '\\').then(|| characters.next()).flatten();
        let part = parts.last_mut().expect("it begins with one part and only grows");
        part.push(c);
        part.extend(escaped);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn fill(template: &str, line: &str) -> Value {
        serde_json::from_str(&Template::parse(template).unwrap().fill(line)).unwrap()
    }

    #[test]
    fn the_line_takes_the_place_of_braces_inside_strings_only() {
        let filled = fill(r#"{"url": "http://{}/{}", "options": {}, "n": 1}"#, "a b");
        assert_eq!(filled, json!({"url": "http://a b/a b", "options": {}, "n": 1}));
    }

    #[test]
    fn an_escaped_quote_does_not_end_the_string() {
        assert_eq!(fill(r#"["\"{}\\", {}]"#, "x"), json!(["\"x\\", {}]));
    }

    #[test]
    fn a_template_that_cannot_be_filled_is_refused_with_the_reason() {
        for (text, why) in [("{\"a\": {}", "not JSON"), ("{\"a\": {}}", "no string in it")] {
            let error = Template::parse(text).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_line_arrives_unchanged(line in any::<String>()) {
            prop_assert_eq!(fill(PATH, &line), json!({"path": line}));
        }
    }
}
