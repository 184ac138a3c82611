//! One client. It follows rooms, keeps its newest token, and comes back with it whenever it has lost
//! its connection.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use forebay_producer::Event;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time;

use crate::diary::{Diary, Word};
use crate::door::Door;
use crate::workload::{CHANNELS, KIND, RARE};

/// What a client follows, and from where on at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taste {
    /// Everything that there is.
    AllFromBeginning,
    /// Everything from when it comes.
    AllFromNow,
    /// A channel that is told something now and then.
    Rare,
}

impl Taste {
    pub(crate) const ALL: [Self; 3] = [Self::AllFromBeginning, Self::AllFromNow, Self::Rare];

    /// Whether an event is in one of its rooms.
    pub(crate) fn wants(self, event: &Event) -> bool {
        match self {
            Self::Rare => event.channel() == Some(RARE),
            _ => {
                event.channel().is_some_and(|channel| CHANNELS.contains(&channel))
                    || event.what.is_of_job() && event.kind.as_deref() == Some(KIND)
            }
        }
    }

    fn rooms(self) -> Value {
        match self {
            Self::Rare => json!({ "channel": RARE }),
            _ => json!({ "channel": CHANNELS, "kind": KIND }),
        }
    }
}

/// What a client does at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    Awake,
    /// It has its connection and reads nothing.
    Deaf,
    /// It has no connection and wants none.
    Away,
}

/// One client, seen from inside.
#[derive(Debug, Clone)]
pub(crate) struct Follower {
    pub(crate) door: Door,
    pub(crate) taste: Taste,
    pub(crate) http: reqwest::Client,
    address: String,
    mood: watch::Receiver<Mood>,
    diary: Arc<Mutex<Diary>>,
}

/// The same from outside. Dropped, it is gone.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) follower: Follower,
    mood: watch::Sender<Mood>,
    task: AbortHandle,
}

impl Client {
    /// Begins to follow at the gateway behind this address.
    pub(crate) fn start(http: &reqwest::Client, address: &str, door: Door, taste: Taste) -> Self {
        let (mood, known) = watch::channel(Mood::Awake);
        let follower = Follower {
            door,
            taste,
            http: http.clone(),
            address: address.to_owned(),
            mood: known,
            diary: Arc::default(),
        };
        let task = tokio::spawn(follower.clone().keep_following()).abort_handle();
        Self { follower, mood, task }
    }

    pub(crate) fn is(&self, mood: Mood) {
        self.mood.send_replace(mood);
    }

    pub(crate) fn name(&self) -> String {
        format!("{:?} {:?}", self.follower.door, self.follower.taste)
    }

    /// Whether its first subscription was answered.
    pub(crate) fn has_joined(&self) -> bool {
        let diary = self.follower.diary();
        diary.notes.iter().any(|note| matches!(note.word, Word::Joined { .. }))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Follower {
    async fn keep_following(self) {
        let mut mood = self.mood.clone();
        loop {
            if mood.wait_for(|mood| *mood != Mood::Away).await.is_err() {
                return;
            }
            let because = tokio::select! {
                // Both may be dropped: a connection that is half open is no connection.
                ended = self.door.session(&self) => ended.err().map(|error| format!("{error:#}")),
                _ = mood.wait_for(|mood| *mood == Mood::Away) => Some("went away".to_owned()),
            };
            self.diary().parted(because.unwrap_or_default());
            time::sleep(Duration::from_millis(fastrand::u64(30..150))).await;
        }
    }

    /// Returns when it reads.
    pub(crate) async fn awake(&self) {
        _ = self.mood.clone().wait_for(|mood| *mood != Mood::Deaf).await;
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn diary(&self) -> MutexGuard<'_, Diary> {
        self.diary.lock().unwrap()
    }

    pub(crate) fn token(&self) -> Option<String> {
        self.diary().token.clone()
    }

    /// What it asks for: its rooms, from its newest token on.
    pub(crate) fn wish(&self) -> Value {
        let mut wish = self.taste.rooms();
        if let Some(from) = self.token().or_else(|| self.first_place()) {
            wish["from"] = from.into();
        }
        wish
    }

    /// The same for an address, which stays the same.
    pub(crate) fn query(&self) -> String {
        let mut query = String::new();
        for (name, value) in self.taste.rooms().as_object().into_iter().flatten() {
            for value in value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice) {
                query += &format!("{name}={}&", value.as_str().unwrap_or_default());
            }
        }
        query + &self.first_place().map(|from| format!("from={from}")).unwrap_or_default()
    }

    fn first_place(&self) -> Option<String> {
        (self.taste == Taste::AllFromBeginning).then(|| "beginning".to_owned())
    }
}
