//! Patterns in which `*` stands for any text: `invoice.*`, `*`.
//! In: a pattern, a name. Out: whether it matches, in time that grows with their lengths alone.

use std::fmt;

/// One pattern.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Pattern(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Any,
}

impl Pattern {
    /// Reads a pattern; every `*` in it stands for any text, the empty one too.
    pub(crate) fn new(text: &str) -> Self {
        Self::filled(text, &[])
    }

    /// Reads a pattern in which names in braces stand for values, which are taken as they are: a
    /// `*` in a value is no wildcard.
    pub(crate) fn filled(text: &str, values: &[(&str, &str)]) -> Self {
        let mut parts: Vec<Part> = Vec::new();
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let value = values.iter().find_map(|(name, value)| {
                let after = rest.strip_prefix('{')?.strip_prefix(name)?.strip_prefix('}')?;
                Some((*value, after))
            });
            if let Some((value, after)) = value {
                push_text(&mut parts, value);
                rest = after;
                continue;
            }
            match first {
                '*' if parts.last() == Some(&Part::Any) => {}
                '*' => parts.push(Part::Any),
                other => push_text(&mut parts, other.encode_utf8(&mut [0; 4])),
            }
            rest = &rest[first.len_utf8()..];
        }
        Self(parts)
    }

    /// The name in braces whose value could be taken for another's, if there is one. What follows a
    /// value, and what stands before it, tells where it ends: a value that has this character itself
    /// begins or ends like another one, and a `*` stands for the difference.
    pub(crate) fn blurred<'a>(text: &str, values: &[(&'a str, &str)]) -> Option<&'a str> {
        if !text.contains('*') {
            return None;
        }
        let (name, _) = values.iter().find(|(name, value)| {
            let place = format!("{{{name}}}");
            text.match_indices(&place).any(|(at, _)| {
                let before = text[..at].chars().next_back();
                let after = text[at + place.len()..].chars().next();
                let beside = before.into_iter().chain(after);
                beside.into_iter().any(|c| "*{}".contains(c) || value.contains(c))
            })
        })?;
        Some(name)
    }

    /// Whether the whole name is of this form.
    pub(crate) fn matches(&self, name: &str) -> bool {
        let (mut rest, mut floating) = (name, false);
        let last = self.0.len().wrapping_sub(1);
        for (place, part) in self.0.iter().enumerate() {
            match part {
                Part::Any => floating = true,
                Part::Text(text) if !floating => match rest.strip_prefix(text.as_str()) {
                    Some(after) => rest = after,
                    None => return false,
                },
                // Only the end of the name will do for the end of the pattern.
                Part::Text(text) if place == last => return rest.ends_with(text.as_str()),
                Part::Text(text) => match rest.find(text.as_str()) {
                    Some(at) => (rest, floating) = (&rest[at + text.len()..], false),
                    None => return false,
                },
            }
        }
        floating || rest.is_empty()
    }
}

fn push_text(parts: &mut Vec<Part>, more: &str) {
    match parts.last_mut() {
        Some(Part::Text(text)) => text.push_str(more),
        _ => parts.push(Part::Text(more.to_owned())),
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Any => "*".to_owned(),
        };
        f.write_str(&self.0.iter().map(text).collect::<String>())
    }
}

/// Whether any of the patterns matches.
pub(crate) fn any_matches(patterns: &[Pattern], name: &str) -> bool {
    patterns.iter().any(|pattern| pattern.matches(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, name, matches) in [
            ("invoice.render", "invoice.render", true),
            ("invoice.render", "invoice.rendered", false),
            ("invoice.*", "invoice.render", true),
            ("invoice.*", "invoice.a.b", true),
            ("invoice.*", "invoice", false),
            ("*", "", true),
            ("*", "anything", true),
            ("", "", true),
            ("", "a", false),
            ("*.done", "a.done", true),
            ("*.done", "a.done.b", false),
            ("a*b*c", "a1b2c", true),
            ("a*b*c", "abcbc", true),
            ("a*b*c", "ab", false),
            ("a**b", "ab", true),
            ("*a*", "bab", true),
            ("*ab", "aab", true),
            ("ab*b", "ab", false),
        ] {
            assert_eq!(Pattern::new(pattern).matches(name), matches, "{pattern} {name}");
        }
    }

    #[test]
    fn a_value_is_taken_as_it_is() {
        let own = |subject| Pattern::filled("user.{subject}.*", &[("subject", subject)]);
        assert!(own("ada").matches("user.ada.news"));
        assert!(!own("*").matches("user.ada.news"), "a subject cannot widen its rights");
        assert!(own("*").matches("user.*.news"));
        assert!(own("{tenant}").matches("user.{tenant}.x"));
        assert!(Pattern::new("user.{subject}").matches("user.{subject}"));
    }

    #[test]
    fn a_value_that_another_begins_with_is_found() {
        let blurred = |text, subject| {
            Pattern::blurred(text, &[("subject", subject), ("owner", "acme")]).is_some()
        };
        for (text, subject, found) in [
            ("user.{subject}.*", "ada", false),
            ("user.{subject}.*", "ada.smith", true),
            ("user/{subject}/*", "ann@corp.co", false),
            ("user/{subject}/*", "a/b", true),
            ("*.{subject}", "a.b", true),
            ("user.{subject}", "ada.smith", false),
            ("user.{subject}*", "ada", true),
            ("{owner}{subject}.*", "ada", true),
            ("team.*", "a.b", false),
        ] {
            assert_eq!(blurred(text, subject), found, "{text} {subject}");
        }
    }

    fn slow(pattern: &str, name: &str) -> bool {
        match pattern.chars().next() {
            None => name.is_empty(),
            Some('*') => {
                let rest = &pattern[1..];
                slow(rest, name) || name.chars().next().is_some_and(|_| slow(pattern, &name[1..]))
            }
            Some(c) => name.starts_with(c) && slow(&pattern[1..], &name[1..]),
        }
    }

    proptest! {
        #[test]
        fn it_is_what_the_plain_definition_says(pattern in "[ab*]{0,8}", name in "[ab]{0,8}") {
            prop_assert_eq!(Pattern::new(&pattern).matches(&name), slow(&pattern, &name));
        }
    }
}
