//! From the claims of a token to who somebody is.
//! In: claims whose signature and times hold. Out: an identity, or what is wrong with them. Pure.

use serde_json::{Map, Value};

use super::{ANONYMOUS, Grants, Identity};
use crate::refusal::Refusal;

/// The longest name of a subject or an owner; both go into headers and keys.
const LONGEST: usize = 255;

/// Where in a token we look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClaimNames {
    /// Whose jobs somebody's jobs are.
    pub(crate) owner: String,
    /// What somebody may do.
    pub(crate) grants: String,
}

impl Default for ClaimNames {
    fn default() -> Self {
        Self { owner: "sub".to_owned(), grants: "forebay".to_owned() }
    }
}

/// Who somebody is by these claims; `everybody` is granted to each besides.
pub(crate) fn identity(
    claims: &Map<String, Value>,
    names: &ClaimNames,
    everybody: &Grants,
) -> Result<Identity, Refusal> {
    let subject = text(claims, "sub")?;
    let owner = text(claims, &names.owner)?;
    if owner == ANONYMOUS {
        return Err(wrong(&names.owner, "is `anonymous`, who is somebody else", "another name"));
    }
    let grants = match claims.get(&names.grants) {
        None | Some(Value::Null) => Grants::default(),
        Some(granted) => Grants::deserialize_from(granted).map_err(|why| {
            wrong(&names.grants, &format!("cannot be read: {why}"), "as docs/gateway.md says")
        })?,
    };
    if let Some(entry) = grants.unreadable() {
        let what = format!("grants `{entry}`, which names no scope");
        return Err(wrong(&names.grants, &what, "`kind:PATTERN` or `channel:PATTERN`"));
    }
    let expires = claims.get("exp").and_then(seconds);
    Ok(Identity { subject, owner: Some(owner), grants: grants.and(everybody), expires })
}

impl Grants {
    fn deserialize_from(value: &Value) -> Result<Self, serde_json::Error> {
        serde::Deserialize::deserialize(value)
    }
}

/// `exp` may be a number with a fraction.
fn seconds(value: &Value) -> Option<u64> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it saturates")]
    value.as_u64().or_else(|| value.as_f64().map(|seconds| seconds as u64))
}

fn text(claims: &Map<String, Value>, name: &str) -> Result<String, Refusal> {
    let found = match claims.get(name) {
        Some(Value::String(text)) => text.clone(),
        // Some issuers number their users.
        Some(Value::Number(number)) => number.to_string(),
        Some(_) => return Err(wrong(name, "is neither text nor number", "a name there")),
        None => return Err(wrong(name, "is missing", "a name there")),
    };
    if found.is_empty() || found.len() > LONGEST || found.chars().any(char::is_control) {
        return Err(wrong(name, "is empty, has control characters or over 255 bytes", "a name"));
    }
    Ok(found)
}

fn wrong(claim: &str, what: &str, wanted: &str) -> Refusal {
    Refusal::unauthenticated(
        format!("claim `{claim}` of the token {what}"),
        format!("have the issuer write {wanted}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(claims: &Value) -> Result<Identity, String> {
        let everybody = Grants { read: vec!["channel:public".into()], ..Grants::default() };
        let names = ClaimNames { owner: "tenant".into(), ..ClaimNames::default() };
        identity(claims.as_object().unwrap(), &names, &everybody).map_err(|error| error.to_string())
    }

    #[test]
    fn claims_say_who_it_is_and_what_it_may() {
        let claims = json!({
            "sub": "ada", "tenant": "acme", "exp": 1_700_000_000.5, "iss": "x",
            "forebay": { "publish": ["note.*"], "read": ["kind:note.*"] },
        });
        let ada = read(&claims).unwrap();
        assert_eq!((ada.subject.as_str(), ada.owner.as_deref()), ("ada", Some("acme")));
        assert_eq!(ada.grants.publish, ["note.*"]);
        assert_eq!(ada.grants.read, ["kind:note.*", "channel:public"]);
        assert_eq!((ada.grants.admin, ada.expires), (false, Some(1_700_000_000)));
        let few = read(&json!({ "sub": 7, "tenant": "acme", "forebay": null })).unwrap();
        assert_eq!((few.subject.as_str(), few.grants.publish.len()), ("7", 0));
    }

    #[test]
    fn claims_that_cannot_be_understood_let_nobody_in() {
        for (claims, words) in [
            (json!({ "tenant": "acme" }), "claim `sub` of the token is missing"),
            (json!({ "sub": "ada" }), "claim `tenant` of the token is missing"),
            (json!({ "sub": "ada", "tenant": "anonymous" }), "who is somebody else"),
            (json!({ "sub": "", "tenant": "a" }), "is empty"),
            (json!({ "sub": "a\nb", "tenant": "a" }), "control characters"),
            (json!({ "sub": ["a"], "tenant": "a" }), "neither text nor number"),
            (json!({ "sub": "a", "tenant": "a", "forebay": "all" }), "cannot be read"),
            (json!({ "sub": "a", "tenant": "a", "forebay": { "pubish": [] } }), "pubish"),
            (
                json!({ "sub": "a", "tenant": "a", "forebay": { "admin": "yes" } }),
                "expected a boolean",
            ),
            (json!({ "sub": "a", "tenant": "a", "forebay": { "read": ["*"] } }), "no scope"),
        ] {
            let error = read(&claims).unwrap_err();
            assert!(error.starts_with("unauthenticated: ") && error.contains(words), "{error}");
        }
    }
}
