//! Who a client is and what it may do.
//! In: tokens, tickets, or nothing at all. Out: a [`Caller`], whose answers are pure; or a refusal.

pub(crate) mod claims;
pub(crate) mod gate;
pub(crate) mod keys;
mod ring;
pub(crate) mod ticket;

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::pattern::{Pattern, any_matches};
use crate::refusal::Refusal;

/// Who owns the jobs of those who say nothing about themselves. No token may say so of itself.
pub(crate) const ANONYMOUS: &str = "anonymous";

/// What a token or the configuration grants, as text: what a ticket carries.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Grants {
    /// Kinds that may be published.
    pub(crate) publish: Vec<String>,
    /// `kind:PATTERN` and `channel:PATTERN`: what may be read besides one's own jobs.
    pub(crate) read: Vec<String>,
    /// Whether everything may be read, whoever owns it.
    pub(crate) admin: bool,
}

impl Grants {
    /// Both together.
    pub(crate) fn and(mut self, other: &Self) -> Self {
        self.publish.extend(other.publish.iter().cloned());
        self.read.extend(other.read.iter().cloned());
        self.admin |= other.admin;
        self
    }

    /// The first entry of `read` that has neither form.
    pub(crate) fn unreadable(&self) -> Option<&str> {
        let read = self.read.iter();
        read.map(String::as_str).find(|entry| Scope::of(entry).is_none())
    }
}

/// What an entry of `read` is about.
#[derive(Clone, Copy)]
enum Scope {
    Kind,
    Channel,
}

impl Scope {
    fn of(entry: &str) -> Option<(Self, &str)> {
        let (word, pattern) = entry.split_once(':')?;
        match word {
            "kind" => Some((Self::Kind, pattern)),
            "channel" => Some((Self::Channel, pattern)),
            _ => None,
        }
    }
}

/// Who somebody is, as text: what a ticket carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) subject: String,
    /// Whose jobs its jobs are; `None` for those who say nothing about themselves.
    pub(crate) owner: Option<String>,
    pub(crate) grants: Grants,
    /// Until when this holds, in seconds since 1970.
    pub(crate) expires: Option<u64>,
}

/// A client that was let in, and what it may do.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    identity: Identity,
    publish: Vec<Pattern>,
    kinds: Vec<Pattern>,
    channels: Vec<Pattern>,
}

impl Caller {
    /// Reads what the identity is granted. In patterns `{subject}` and `{owner}` stand for its own;
    /// where that would grant what is another's, it is refused.
    pub(crate) fn new(identity: Identity) -> Result<Self, Refusal> {
        let owner = identity.owner.as_deref().unwrap_or(ANONYMOUS);
        let values = [("subject", identity.subject.as_str()), ("owner", owner)];
        let grants = &identity.grants;
        for pattern in grants.publish.iter().chain(&grants.read) {
            if let Some(name) = Pattern::blurred(pattern, &values) {
                return Err(Refusal::forbidden(
                    format!("`{pattern}` would grant you what belongs to another {name}"),
                    format!(
                        "have the operator set off `{{{name}}}` in this pattern by a character \
                         that no {name} has, as in `{{{name}}}/*`"
                    ),
                ));
            }
        }
        let publish = grants.publish.iter().map(|text| Pattern::filled(text, &values)).collect();
        let (mut kinds, mut channels) = (Vec::new(), Vec::new());
        for (scope, pattern) in grants.read.iter().filter_map(|entry| Scope::of(entry)) {
            let pattern = Pattern::filled(pattern, &values);
            match scope {
                Scope::Kind => kinds.push(pattern),
                Scope::Channel => channels.push(pattern),
            }
        }
        Ok(Self { publish, kinds, channels, identity })
    }

    /// Somebody who says nothing about itself.
    pub(crate) fn anonymous(grants: &Grants) -> Result<Self, Refusal> {
        Self::new(Identity {
            subject: ANONYMOUS.to_owned(),
            owner: None,
            grants: Grants { admin: false, ..grants.clone() },
            expires: None,
        })
    }

    /// Who it is, in logs and limits.
    pub(crate) fn subject(&self) -> &str {
        &self.identity.subject
    }

    /// Whose jobs its jobs are.
    pub(crate) fn owner(&self) -> &str {
        self.identity.owner.as_deref().unwrap_or(ANONYMOUS)
    }

    pub(crate) fn is_anonymous(&self) -> bool {
        self.identity.owner.is_none()
    }

    pub(crate) fn is_admin(&self) -> bool {
        self.identity.grants.admin
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Until when it is let in.
    pub(crate) fn expires(&self) -> Option<SystemTime> {
        let seconds = self.identity.expires?;
        SystemTime::UNIX_EPOCH.checked_add(std::time::Duration::from_secs(seconds))
    }

    /// Whether it may publish jobs of this kind.
    pub(crate) fn may_publish(&self, kind: &str) -> Result<(), Refusal> {
        if any_matches(&self.publish, kind) {
            return Ok(());
        }
        Err(Refusal::forbidden(
            format!("you may not publish jobs of kind `{kind}`"),
            "use a token whose claims grant it under `publish`",
        ))
    }

    /// Whether it may follow the jobs of this kind: all that it may see.
    pub(crate) fn may_read_kind(&self, kind: &str) -> Result<(), Refusal> {
        self.may_read("kind", &self.kinds, kind)
    }

    /// Whether it may follow this channel.
    pub(crate) fn may_read_channel(&self, channel: &str) -> Result<(), Refusal> {
        self.may_read("channel", &self.channels, channel)
    }

    fn may_read(&self, what: &str, granted: &[Pattern], name: &str) -> Result<(), Refusal> {
        if self.is_admin() || any_matches(granted, name) {
            return Ok(());
        }
        Err(Refusal::forbidden(
            format!("you may not read {what} `{name}`"),
            format!("use a token whose claims grant `{what}:{name}` under `read`"),
        ))
    }

    /// Whether it may see events of a job that belongs to `owner`.
    pub(crate) fn may_see_job_of(&self, owner: Option<&str>) -> bool {
        self.is_admin() || owner == Some(self.owner())
    }

    /// Whether it may see what was emitted to a channel, whoever owns the job that emitted it.
    pub(crate) fn may_see_channel(&self, channel: &str) -> bool {
        self.is_admin() || any_matches(&self.channels, channel)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn caller(subject: &str, publish: &[&str], read: &[&str], admin: bool) -> Caller {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let grants = Grants { publish: texts(publish), read: texts(read), admin };
        let owner = Some(subject.to_owned());
        Caller::new(Identity { subject: subject.to_owned(), owner, grants, expires: None }).unwrap()
    }

    #[test]
    fn what_is_granted_is_allowed_and_nothing_else() {
        let ada = caller("ada", &["note.*"], &["kind:note.take", "channel:user.{subject}"], false);
        assert!(ada.may_publish("note.take").is_ok() && ada.may_publish("mail.send").is_err());
        assert!(ada.may_read_kind("note.take").is_ok() && ada.may_read_kind("note.drop").is_err());
        assert!(ada.may_read_channel("user.ada").is_ok());
        assert!(ada.may_read_channel("user.bob").is_err());
        assert!(ada.may_read_channel("note.take").is_err(), "a kind is no channel");
        assert!(ada.may_see_channel("user.ada") && !ada.may_see_channel("user.bob"));
    }

    #[test]
    fn own_jobs_are_seen_and_others_by_an_administrator_alone() {
        let (ada, root) = (caller("ada", &[], &[], false), caller("root", &[], &[], true));
        for (owner, seen) in [(Some("ada"), true), (Some("bob"), false), (None, false)] {
            assert_eq!(ada.may_see_job_of(owner), seen, "{owner:?}");
            assert!(root.may_see_job_of(owner), "{owner:?}");
        }
        assert!(root.may_read_kind("any").is_ok() && root.may_read_channel("any").is_ok());
        assert!(root.may_publish("any").is_err(), "to read is not to publish");
    }

    #[test]
    fn who_says_nothing_about_itself_is_no_administrator_and_nobody_else() {
        let grants = Grants { publish: vec!["*".into()], admin: true, ..Grants::default() };
        let nobody = Caller::anonymous(&grants).unwrap();
        assert!(!nobody.is_admin() && nobody.is_anonymous());
        assert!(nobody.may_see_job_of(Some("anonymous")) && !nobody.may_see_job_of(None));
    }

    #[test]
    fn a_pattern_does_not_grant_what_is_of_one_whose_name_begins_alike() {
        let identity = |subject: &str| {
            let read = vec!["channel:user.{subject}.*".to_owned()];
            let grants = Grants { read, ..Grants::default() };
            Identity { subject: subject.into(), owner: Some("acme".into()), grants, expires: None }
        };
        assert!(Caller::new(identity("ada")).unwrap().may_see_channel("user.ada.news"));
        let refused = Caller::new(identity("ada.smith")).unwrap_err();
        assert_eq!(refused.code(), crate::refusal::Code::Forbidden);
        assert!(refused.to_string().contains("another subject"), "{refused}");
    }

    #[test]
    fn a_scope_that_is_not_known_is_found() {
        let mut grants = Grants { read: vec!["kind:*".into()], ..Grants::default() };
        assert_eq!(grants.unreadable(), None);
        grants.read.push("jobs:*".into());
        assert_eq!(grants.unreadable(), Some("jobs:*"));
    }
}
