//! Each role's user with exactly the permissions that docs/wire.md gives it: it does all its work,
//! and nothing else.

use std::time::Duration;

use forebay_producer::link::after;
use forebay_producer::{
    DeadError, DeadLetters, Destination, Filter, Inspector, Pile, QueueType, RedriveOptions,
    TopologyError,
};
use forebay_worker::testing::{OwnBroker, broker_of_its_own};
use forebay_worker::{
    Config, Context, Declare, Envelope, HandlerOptions, JobError, JobResult, Producer,
    PublishError, PublishOptions, QueueOptions, Retry, Worker,
};
use tokio::time;

use crate::support::{Notes, PATIENCE, Work, dead_of, note, work};

const WIRE: &str = include_str!("../../../docs/wire.md");

/// Configure, write and read as docs/wire.md has them, for another namespace.
fn documented(user: &str, namespace: &str) -> [String; 3] {
    let command = format!("rabbitmqctl set_permissions -p / {user} ");
    let line = WIRE.lines().find_map(|line| line.strip_prefix(&command)).unwrap();
    let mut patterns = line.split('\'').skip(1).step_by(2);
    [(); 3].map(|()| {
        patterns
            .next()
            .unwrap()
            .replace("^forebay", &format!("^{namespace}"))
            .replace("|forebay", &format!("|{namespace}"))
    })
}

/// A user of that role, who may declare nothing but what its own permissions allow.
async fn user(own: &OwnBroker, role: &str, config: &Config) -> Config {
    let [configure, write, read] = documented(role, config.topology().namespace());
    own.ctl(&["add_user", role, "hush"]).await;
    own.ctl(&["set_permissions", role, &configure, &write, &read]).await;
    let url = own.url().replace("guest:guest", &format!("{role}:hush"));
    Config::new(&url).unwrap().namespace(config.topology().namespace()).unwrap()
}

/// 1: fails at first. 2: is rejected until it was redriven.
async fn does(job: Work, cx: Context<Notes>) -> JobResult<u64> {
    note(cx.state(), &job, &cx);
    match (job.n, cx.attempt(), cx.envelope().redrives) {
        (1, 1, _) => Err(anyhow::anyhow!("first").into()),
        (2, _, 0) => Err(JobError::reject(anyhow::anyhow!("not yet"))),
        (n, ..) => Ok(n),
    }
}

#[tokio::test]
async fn each_role_does_its_work_with_its_documented_permissions_and_nothing_else() {
    let own = broker_of_its_own("").await;
    let broker = own.broker();
    let operator = user(&own, "operator", &broker.config()).await;
    let [producer, caller, worker] = [
        user(&own, "producer", &broker.config()).await.declare(Declare::Never),
        user(&own, "caller", &broker.config()).await.declare(Declare::Never),
        user(&own, "worker", &broker.config()).await.declare(Declare::Never),
    ];
    let short = |config: &Config| config.clone().publish_deadline(Duration::from_secs(10));

    // The operator declares the queue, and as much of the ladder as is used below.
    let operates = Producer::new(&operator);
    operates.declare("default", QueueType::Quorum).await.unwrap();
    let later = PublishOptions::new().delay(Duration::from_secs(1));
    operates.publish_with(&work(3), later).await.unwrap();

    // The producer publishes, at once and with a delay.
    let publishes = Producer::new(&short(&producer));
    publishes.publish(&work(1)).await.unwrap();
    let later = PublishOptions::new().delay(Duration::from_millis(500));
    publishes.publish_with(&work(2), later).await.unwrap();

    // The worker runs, retries and dead-letters.
    let notes = Notes::default();
    let retry = HandlerOptions::new().retry(Retry::fixed(2, Duration::from_millis(300)));
    let runs = Worker::builder(notes.clone())
        .queue("default", QueueOptions::new())
        .handle_with(retry, does)
        .build()
        .unwrap();
    let running = runs.start(&worker);
    for done in ["1#2", "2#1", "3#1"] {
        notes.wait_for_text(done).await;
    }
    assert_eq!(dead_of(&operator, "default", 1).await[0].reason, "rejected");

    // The caller is answered.
    let calls = Producer::new(&caller);
    let answer: u64 = calls.call(&work(4), PATIENCE).await.unwrap();
    assert_eq!(answer, 4);

    // The operator counts and redrives.
    let inspector = Inspector::new(&operator);
    let queue = operator.topology().queue("default");
    assert!(inspector.count(&queue).await.unwrap().is_some());
    inspector.close().await;
    let (pile, options) = (Pile::Queue("default".to_owned()), RedriveOptions::default());
    let letters = DeadLetters::new(&operator);
    let all = Filter::default();
    let redriven = letters.redrive(&pile, &all, 10, &options, &operates, |_| {}).await.unwrap();
    assert_eq!((redriven.done, redriven.failed), (1, Vec::new()));
    time::timeout(PATIENCE, async {
        while notes.all().iter().filter(|note| *note == "2#1").count() < 2 {
            time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the redriven job is run");
    running.controls().drain();
    let summary = running.finished().await.unwrap();
    assert_eq!((summary.succeeded, summary.retried, summary.dead), (4, 1, 1));

    // Neither of the two looks into dead letters, nor declares anything.
    for config in [&producer, &worker] {
        let letters = DeadLetters::new(&short(config));
        let denied = letters.list(&pile, &all, 1).await.unwrap_err();
        assert!(matches!(denied, DeadError::Denied { .. }), "{denied}");
        letters.close().await;
        let declares = Producer::new(&short(config).declare(Declare::Auto));
        let denied = declares.declare("other", QueueType::Quorum).await.unwrap_err();
        assert!(matches!(denied, TopologyError::Denied { .. }), "{denied}");
    }
    // The producer takes no jobs, and writes no dead letters.
    let takes = Worker::builder(Notes::default())
        .queue("default", QueueOptions::new())
        .handle(does)
        .build()
        .unwrap();
    let patience = producer.clone().access_patience(Duration::ZERO);
    let taking = time::timeout(PATIENCE, takes.run(&patience, std::future::pending())).await;
    assert!(taking.expect("it ends").is_err());
    let letter = Envelope::new("work.do", "default", "{}");
    let deadline = after(PATIENCE);
    let denied = publishes.send(&letter, Destination::DeadLetters, deadline).await.unwrap_err();
    assert!(matches!(denied, PublishError::Denied { .. }), "{denied}");
    // Nobody, the operator neither, reaches into another namespace.
    let other = Producer::new(&broker.config().namespace("other").unwrap());
    other.declare("default", QueueType::Quorum).await.unwrap();
    for config in [&producer, &worker, &operator] {
        let elsewhere = Producer::new(&short(config).namespace("other").unwrap());
        let denied = elsewhere.publish(&work(9)).await.unwrap_err();
        assert!(matches!(denied, PublishError::Denied { .. }), "{denied}");
    }
}
