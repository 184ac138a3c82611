//! What became of a job, by its events.

use forebay_gateway::HubOptions;
use forebay_producer::wire::event::event_data;
use forebay_producer::{Envelope, Event, EventKind, Failure, Reason};
use serde_json::json;
use std::time::{Duration, SystemTime};

use crate::support::{Stream, eventually, within};

fn job(attempt: u32) -> Envelope {
    let mut job = Envelope::new("note.take", "notes", "{}");
    (job.owner, job.attempt) = (Some("ann".to_owned()), attempt);
    job
}

#[tokio::test]
async fn the_state_of_a_job_is_what_its_events_say() {
    let stream = Stream::new().await;
    for window in [100_000, 5] {
        let hub = stream.hub_with(HubOptions::new().window_events(window)).await;
        let mut job = job(1);
        let id = job.id.clone();
        let state = async || within("a state", hub.state_of(&id)).await.unwrap();
        assert!(state().await.is_none() && !hub.knows(&id));
        let progress = |job: &Envelope, percent: u32| {
            Event::of_job(
                EventKind::Progress,
                job,
                event_data(&json!({ "percent": percent })).unwrap(),
            )
        };
        stream.tell([Event::queued(&job, None), Event::started(&job), progress(&job, 40)]).await;
        eventually("the hub has it", async || hub.knows(&id)).await;
        eventually("its progress", async || {
            state().await.is_some_and(|state| state.progress.is_some())
        })
        .await;
        let now = state().await.unwrap();
        assert_eq!((&*now.state, now.attempt), ("started", Some(1)));
        assert_eq!(now.owner.as_deref(), Some("ann"));
        assert_eq!(now.progress.unwrap().get(), r#"{"percent":40}"#);
        // Much happens meanwhile, and what came first is in no window any more.
        stream.count("a", 0..30).await;
        let failure = Failure::new(1, 1, Reason::Failed, "no ink", "here");
        let again = Event::retrying(&job, Duration::from_secs(1), &failure);
        job.attempt = 2;
        let result = Event::succeeded(&job, Some(b"{\"pages\":3}"));
        stream.tell([again, Event::started(&job), result]).await;
        stream.count("a", 0..30).await;
        eventually("it is done", async || {
            state().await.is_some_and(|state| state.state == "succeeded")
        })
        .await;
        let done = state().await.unwrap();
        assert_eq!((done.attempt, done.progress.is_none()), (Some(2), true));
        assert!(done.data.get().contains("pages"), "{}", done.data);
        let text = serde_json::to_value(&done).unwrap();
        assert_eq!(text["token"].as_str(), Some(&*done.token.to_string()));
    }
}

#[tokio::test]
async fn events_that_crossed_on_their_way_are_told_apart_by_their_rank() {
    let stream = Stream::new().await;
    let hub = stream.hub().await;
    let job = job(1);
    stream.tell([Event::started(&job), Event::queued(&job, None)]).await;
    eventually("both are there", async || {
        let state = hub.state_of(&job.id).await.unwrap();
        state.is_some_and(|state| state.token.offset == 1)
    })
    .await;
    assert_eq!(hub.state_of(&job.id).await.unwrap().unwrap().state, "started");
}

#[tokio::test]
async fn a_dead_job_that_was_redriven_lives_again() {
    let stream = Stream::new().await;
    let hub = stream.hub_with(HubOptions::new()).await;
    let job = job(3);
    let again = Event::queued(&job.clone().redriven(), None);
    stream.tell([Event::dead(&job, "failed", "no ink"), again]).await;
    eventually("it is queued", async || {
        let state = hub.state_of(&job.id).await.unwrap();
        state.is_some_and(|state| state.state == "queued")
    })
    .await;
}

#[tokio::test]
async fn a_job_is_found_by_any_id_and_one_that_never_was_is_not() {
    let stream = Stream::new().await;
    let mut job = job(1);
    job.id = "order-4711".to_owned();
    stream.tell([Event::queued(&job, None)]).await;
    stream.count("a", 0..30).await;
    let hub = stream.forgetful_hub().await;
    let state = async |id: &str| within("a state", hub.state_of(id)).await.unwrap();
    assert_eq!(state("order-4711").await.unwrap().state, "queued");
    assert!(!hub.knows("order-4711"), "that is longer ago");
    assert!(state("order-4712").await.is_none());
    assert!(state(&Envelope::new("note.take", "notes", "{}").id).await.is_none());
    let made_in_the_future = "0fffffff-ffff-7000-8000-000000000001";
    assert!(state(made_in_the_future).await.is_none());
}

#[tokio::test]
async fn of_an_id_that_was_made_after_all_that_was_told_nothing_is_known() {
    let stream = Stream::new().await;
    let hub = stream.hub_with(HubOptions::new().window_events(5)).await;
    stream.count("a", 0..30).await;
    eventually("the window has moved on", async || hub.status().window_events == 5).await;
    let later = SystemTime::now() + Duration::from_secs(3_600);
    let ms = later.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
    let id = format!("{:08x}-{:04x}-7000-8000-000000000001", ms >> 16, ms & 0xffff);
    assert!(within("an answer", hub.state_of(&id)).await.unwrap().is_none());
}
