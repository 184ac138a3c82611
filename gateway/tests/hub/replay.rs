//! A client that was away gets what it missed, then what is new; or is told that something is gone.

use std::time::Duration;

use forebay_gateway::{HubOptions, Room, StartFrom};
use forebay_producer::testing::broker;
use forebay_producer::{Gap, Retention, Token};
use futures_util::future::join_all;

use crate::support::{Client, Stream, number, range, within};

#[tokio::test]
async fn what_was_missed_comes_before_what_is_new() {
    let stream = Stream::new().await;
    for window in [100_000, 5] {
        let hub = stream.hub_with(HubOptions::new().window_events(window)).await;
        let (mut client, _) = Client::on(&hub, "a", StartFrom::Now).await;
        stream.count("a", 0..5).await;
        assert_eq!(client.numbers(5).await, range(0..5));
        let token = client.token.clone();
        drop(client);
        for n in 5..55 {
            stream.tell([number("a", n), number("b", n)]).await;
        }
        let (mut client, subscribed) = Client::on(&hub, "a", StartFrom::After(token)).await;
        assert!(subscribed.recovered);
        let telling = stream.count("a", 55..105);
        let (got, ()) = tokio::join!(client.numbers(100), telling);
        assert_eq!(got, range(5..105));
    }
}

#[tokio::test]
async fn what_was_missed_before_a_first_event_comes_too() {
    let stream = Stream::new().await;
    for window in [100_000, 5] {
        let hub = stream.hub_with(HubOptions::new().window_events(window)).await;
        // The first time nothing was ever told; the second time only others were told something.
        let (client, subscribed) = Client::on(&hub, "a", StartFrom::Now).await;
        drop(client);
        stream.count("b", 0..20).await;
        stream.count("a", 0..20).await;
        stream.count("b", 0..20).await;
        let from = StartFrom::After(subscribed.token);
        let (mut client, subscribed) = Client::on(&hub, "a", from).await;
        assert!(subscribed.recovered);
        assert_eq!(client.numbers(20).await, range(0..20));
    }
}

#[tokio::test]
async fn a_client_moves_between_two_hubs_and_misses_nothing() {
    let stream = Stream::new().await;
    let hubs = [stream.hub().await, stream.forgetful_hub().await];
    let (mut client, _) = Client::on(&hubs[0], "a", StartFrom::Now).await;
    let telling = async {
        for n in 0..300 {
            stream.count("a", n..n + 1).await;
        }
    };
    let moving = async {
        let mut got = Vec::new();
        for turn in 1..=30 {
            got.extend(client.numbers(10).await);
            // The other hub may be a little behind this one.
            let from = StartFrom::After(client.token.clone());
            let (next, subscribed) = Client::on(&hubs[turn % 2], "a", from).await;
            assert!(subscribed.recovered, "turn {turn}");
            client = next;
        }
        got
    };
    let (got, ()) = within("30 turns", async { tokio::join!(moving, telling) }).await;
    assert_eq!(got, range(0..300));
}

#[tokio::test]
async fn a_hub_opened_anew_knows_the_tokens_of_the_one_before() {
    let stream = Stream::new().await;
    let hub = stream.hub().await;
    let (mut client, _) = Client::on(&hub, "a", StartFrom::Now).await;
    stream.count("a", 0..10).await;
    client.numbers(4).await;
    let token = client.token.clone();
    hub.close().await;
    stream.count("a", 10..20).await;
    for options in [
        HubOptions::new(),
        // Nothing on the stream is as young as that.
        HubOptions::new().window_age(Duration::ZERO),
        HubOptions::new().window_events(1),
    ] {
        let hub = stream.hub_with(options).await;
        let from = StartFrom::After(token.clone());
        let (mut client, subscribed) = Client::on(&hub, "a", from).await;
        assert!(subscribed.recovered);
        assert_eq!(client.numbers(16).await, range(4..20));
    }
}

#[tokio::test]
async fn a_token_is_believed_by_the_id_at_its_offset_only() {
    let stream = Stream::new().await;
    stream.count("a", 0..20).await;
    for window in [100_000, 5] {
        let hub = stream.hub_with(HubOptions::new().window_events(window)).await;
        for forged in [Token::new(3, "another-id"), Token::new(19, "another-id")] {
            let from = StartFrom::After(forged.clone());
            let (mut client, subscribed) = Client::on(&hub, "a", from).await;
            assert_eq!(subscribed.reason, Some(Gap::Recreated), "{forged}");
            assert!(!subscribed.recovered);
            assert_eq!(client.numbers(20).await, range(0..20), "all that is there");
        }
        let ahead = StartFrom::After(Token::new(1_000_000, "from-elsewhere"));
        let (mut client, subscribed) = Client::on(&hub, "a", ahead).await;
        assert_eq!(subscribed.reason, Some(Gap::Recreated));
        assert_eq!(client.numbers(20).await, range(0..20));
    }
}

#[tokio::test]
async fn a_stream_made_anew_is_told_to_those_who_are_there_and_to_those_who_come_back() {
    let stream = Stream::new().await;
    for window in [100_000, 5] {
        let hub = stream.hub_with(HubOptions::new().window_events(window)).await;
        let (mut here, _) = Client::on(&hub, "a", StartFrom::Now).await;
        stream.count("a", 0..20).await;
        assert_eq!(here.numbers(20).await, range(0..20));
        let (old, newer) = (Token::new(3, "gone"), here.token.clone());
        stream.recreate().await;
        stream.count("a", 100..130).await;
        assert_eq!(here.gap().await, Gap::Recreated);
        assert_eq!(here.numbers(30).await, range(100..130));
        for token in [old, newer] {
            let (mut back, subscribed) = Client::on(&hub, "a", StartFrom::After(token)).await;
            assert_eq!(subscribed.reason, Some(Gap::Recreated));
            assert_eq!(back.numbers(30).await, range(100..130));
        }
        stream.recreate().await;
    }
}

#[tokio::test]
async fn a_token_that_is_no_longer_kept_is_told() {
    let broker = broker().await;
    let mut kept = Retention::default();
    (kept.max_bytes, kept.segment_bytes) = (40_000, 20_000);
    let config = broker.config().retention(kept);
    let stream = Stream::with(broker, &config).await;
    let hub = stream.forgetful_hub().await;
    let (mut client, _) = Client::on(&hub, "a", StartFrom::Now).await;
    stream.count("a", 0..1).await;
    client.numbers(1).await;
    let token = client.token.clone();
    drop(client);
    // A segment at a time goes, when a new one begins.
    for hundred in 0..20 {
        stream.count("a", hundred * 100..hundred * 100 + 100).await;
    }
    let (mut client, subscribed) = Client::on(&hub, "a", StartFrom::After(token)).await;
    assert_eq!((subscribed.recovered, subscribed.reason), (false, Some(Gap::Retention)));
    let first = client.numbers(1).await[0];
    let rest = usize::try_from(1_999 - first).unwrap();
    assert_eq!(client.numbers(rest).await, range(first + 1..2_000), "all that is there");
    for _ in 0..2 {
        let (_, subscribed) = Client::on(&hub, "a", StartFrom::Beginning).await;
        assert_eq!(subscribed.reason, Some(Gap::Retention), "the beginning is gone too");
    }
}

#[tokio::test]
async fn from_the_beginning_means_all_of_it() {
    let stream = Stream::new().await;
    stream.count("a", 0..100).await;
    for window in [100_000, 5] {
        let hub = stream.hub_with(HubOptions::new().window_events(window)).await;
        let (mut client, subscribed) = Client::on(&hub, "a", StartFrom::Beginning).await;
        assert!(subscribed.recovered);
        assert_eq!(client.numbers(100).await, range(0..100));
    }
}

#[tokio::test]
async fn a_client_that_falls_behind_the_window_catches_up() {
    let stream = Stream::new().await;
    let hub = stream.forgetful_hub().await;
    let (mut client, _) = Client::on(&hub, "a", StartFrom::Now).await;
    for hundred in 0..10 {
        stream.count("a", hundred * 100..hundred * 100 + 100).await;
        // It takes one of a hundred while they come.
        assert_eq!(client.numbers(1).await, [hundred]);
    }
    assert_eq!(client.numbers(990).await, range(10..1_000));
}

#[tokio::test]
async fn a_token_of_a_quiet_room_is_renewed_by_what_goes_by() {
    let stream = Stream::new().await;
    let hub = stream.forgetful_hub().await;
    let (client, subscribed) = Client::on(&hub, "quiet", StartFrom::Now).await;
    let (mut witness, _) = Client::on(&hub, "a", StartFrom::Now).await;
    stream.count("a", 0..50).await;
    witness.numbers(50).await;
    let renewed = client.session.handle().token();
    assert!(renewed.offset > subscribed.token.offset);
    stream.count("quiet", 0..3).await;
    let from = StartFrom::After(renewed);
    let (mut client, subscribed) = Client::on(&hub, "quiet", from).await;
    assert!(subscribed.recovered);
    assert_eq!(client.numbers(3).await, range(0..3));
}

#[tokio::test]
async fn the_newest_token_is_enough_amid_a_catching_up() {
    let stream = Stream::new().await;
    let hub = stream.forgetful_hub().await;
    let rooms = [Room::channel("a"), Room::channel("b")];
    for n in 0..30 {
        stream.tell([number("a", n), number("b", 1_000 + n)]).await;
    }
    let mut client = Client::of(&hub);
    client.join(&rooms[..1], StartFrom::Beginning).await;
    let mut got = client.numbers(20).await;
    // The other room begins further back than this one has come.
    client.join(&rooms[1..], StartFrom::Beginning).await;
    got.extend(client.numbers(5).await);
    let token = client.token.clone();
    let mut client = Client::of(&hub);
    client.join(&rooms, StartFrom::After(token)).await;
    stream.count("a", 30..31).await;
    while !got.contains(&30) {
        got.extend(client.numbers(1).await);
    }
    got.sort_unstable();
    got.dedup();
    assert_eq!(got, [range(0..31), range(1_000..1_030)].concat());
}

#[tokio::test]
async fn clients_that_take_nothing_hold_little_and_hold_up_nobody() {
    let stream = Stream::new().await;
    stream.count("a", 0..3_000).await;
    let budget = 50_000;
    let hub = stream.hub_with(HubOptions::new().window_events(5).replay_bytes(budget)).await;
    let mut waiting = Vec::new();
    for _ in 0..30 {
        let (mut client, _) = Client::on(&hub, "a", StartFrom::Beginning).await;
        assert_eq!(client.numbers(1).await, [0]);
        waiting.push(client);
    }
    let (mut quick, _) = Client::on(&hub, "a", StartFrom::Beginning).await;
    assert_eq!(quick.numbers(3_000).await, range(0..3_000));
    let taking = waiting.iter_mut().map(|client| client.numbers(2_999));
    for got in within("the others", join_all(taking)).await {
        assert_eq!(got, range(1..3_000));
    }
}

#[tokio::test]
async fn many_subscriptions_of_one_session_at_once_are_all_answered_and_served() {
    let stream = Stream::new().await;
    for n in 0..20 {
        stream.tell((0..50).map(|room| number(&format!("r{room}"), n))).await;
    }
    let hub = stream.forgetful_hub().await;
    let mut client = Client::of(&hub);
    let handle = client.session.handle();
    let subscribing = (0..50).map(|room| {
        let rooms = vec![Room::channel(&format!("r{room}"))];
        handle.subscribe(rooms, StartFrom::Beginning)
    });
    for subscribed in within("50 answers", join_all(subscribing)).await {
        assert!(subscribed.unwrap().recovered);
    }
    assert_eq!(handle.rooms(), 50);
    let mut got = client.numbers(1_000).await;
    got.sort_unstable();
    assert!(got.chunks(50).enumerate().all(|(n, chunk)| chunk == vec![n as u64; 50]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_sessions_replay_through_eight_readers() {
    const ROOMS: u64 = 50;
    let stream = Stream::new().await;
    for round in 0..200 {
        stream.tell((0..ROOMS).map(|room| number(&format!("r{room}"), round))).await;
    }
    let hub = stream.hub_with(HubOptions::new().window_events(100)).await;
    let (mut all, _) = Client::on(&hub, "r0", StartFrom::Beginning).await;
    let mut tokens = Vec::new();
    for n in 0..200 {
        assert_eq!(all.numbers(1).await, [n]);
        tokens.push(all.token.clone());
    }
    let replays = (0..1_000u64).map(|n| {
        // Each comes back from another place, which is that of an event of another room.
        let (room, missed_from) = (1 + n % (ROOMS - 1), n * 7 % 190);
        let from = StartFrom::After(tokens[usize::try_from(missed_from).unwrap()].clone());
        let hub = hub.clone();
        async move {
            let (mut client, subscribed) = Client::on(&hub, &format!("r{room}"), from).await;
            assert!(subscribed.recovered);
            let count = usize::try_from(200 - missed_from).unwrap();
            assert_eq!(client.numbers(count).await, range(missed_from..200));
        }
    });
    let busy = async {
        let mut most = 0;
        loop {
            most = most.max(hub.status().readers);
            assert!(most <= 8, "{most} readers");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let replays = within("1,000 replays", join_all(replays));
    tokio::select! {
        _ = replays => {}
        () = busy => {}
    }
}

#[tokio::test]
async fn a_stream_made_anew_again_and_again_is_told_each_time() {
    let stream = Stream::new().await;
    let hubs = [stream.hub().await, stream.forgetful_hub().await];
    let mut clients = Vec::new();
    for hub in &hubs {
        let (client, _) = Client::on(hub, "a", StartFrom::Now).await;
        clients.push(client);
    }
    for round in 0..4u64 {
        let (first, count) = (round * 100, 10 + 10 * (round % 3));
        stream.count("a", first..first + count).await;
        for client in &mut clients {
            if round > 0 {
                assert_eq!(client.gap().await, Gap::Recreated, "round {round}");
            }
            let got = client.numbers(usize::try_from(count).unwrap()).await;
            assert_eq!(got, range(first..first + count), "round {round}");
        }
        stream.recreate().await;
    }
}
