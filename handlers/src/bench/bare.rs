//! The reference: the same work with lapin alone, the way its users write it.
//! In: an order. Out: jobs handled or published, with no retries, no log, no metrics.

use std::sync::Arc;

use anyhow::{Context as _, bail};
use forebay_producer::link;
use forebay_worker::Job as _;
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, Consumer};
use tokio::sync::Semaphore;
use tokio::time;
use tokio_util::task::TaskTracker;

use super::child::{self, Job};
use super::forebay::WINDOW;
use super::job::{Nothing, Tally, carry_out};
use super::order::{Account, Contestant, Event, Work};

/// Set on the copy of a job that has failed.
const AGAIN: &str = "again";
/// How long to wait before a look whether the queue is there by now.
const LOOK: time::Duration = time::Duration::from_millis(5);

/// What all deliveries of one consumer share.
#[derive(Clone)]
struct Shop {
    tally: Arc<Tally>,
    channel: Channel,
    /// For copies of failed jobs, if there will be any.
    confirmed: Option<Channel>,
    exchange: String,
}

/// Consumes until told to stop.
pub(crate) async fn consume(job: &Job<'_>) -> anyhow::Result<Account> {
    let connection = connect(job).await?;
    let (channel, deliveries) = subscribe(&connection, job).await?;
    let confirmed = match job.tally.work {
        Work::FailTenth => Some(confirming(&connection).await?),
        _ => None,
    };
    let exchange = job.config.topology().jobs_exchange().to_owned();
    let shop = Shop { tally: Arc::clone(&job.tally), channel, confirmed, exchange };
    child::say(&Event::Working);
    let tasks = TaskTracker::new();
    let resident = tokio::select! {
        resident = job.stopped() => resident,
        // All is handled by the time we are stopped, so that it is dropped while it waits.
        ended = take(deliveries, &shop, job, &tasks) => {
            ended?;
            bail!("the broker cancelled the reference's consumer");
        }
    };
    tasks.close();
    tasks.wait().await;
    // The broker answers once it has seen the acks before it; a closing connection may overtake them.
    shop.channel.close(200, "done".into()).await.context("failed to close the channel")?;
    connection.close(200, "done".into()).await.context("failed to close")?;
    Ok(job.account(resident))
}

async fn take(
    deliveries: Consumer,
    shop: &Shop,
    job: &Job<'_>,
    tasks: &TaskTracker,
) -> anyhow::Result<()> {
    match job.order.contestant {
        Contestant::BareAwaited => awaited(deliveries, shop).await,
        Contestant::BareTasks => in_tasks(deliveries, shop, job.order.concurrency, tasks).await,
        _ => batched(deliveries, shop).await,
    }
}

/// What is there is taken, and then acked with one frame.
async fn batched(mut deliveries: Consumer, shop: &Shop) -> anyhow::Result<()> {
    while let Some(delivery) = deliveries.next().await {
        let mut delivery = delivery?;
        loop {
            shop.handle(&delivery).await?;
            match deliveries.next().now_or_never() {
                Some(Some(next)) => delivery = next?,
                _ => break,
            }
        }
        let all = BasicAckOptions { multiple: true };
        shop.channel.basic_ack(delivery.delivery_tag, all).await?;
    }
    Ok(())
}

/// The obvious loop.
async fn awaited(mut deliveries: Consumer, shop: &Shop) -> anyhow::Result<()> {
    while let Some(delivery) = deliveries.next().await {
        let delivery = delivery?;
        shop.handle(&delivery).await?;
        delivery.ack(BasicAckOptions::default()).await?;
    }
    Ok(())
}

/// What one writes when handlers wait: a task for each delivery, a bounded number at once.
async fn in_tasks(
    mut deliveries: Consumer,
    shop: &Shop,
    most: usize,
    tasks: &TaskTracker,
) -> anyhow::Result<()> {
    let permits = Arc::new(Semaphore::new(most));
    while let Some(delivery) = deliveries.next().await {
        let (delivery, shop) = (delivery?, shop.clone());
        let permit = Arc::clone(&permits).acquire_owned().await?;
        tasks.spawn(async move {
            if shop.handle(&delivery).await.is_ok() {
                let one = BasicAckOptions::default();
                _ = shop.channel.basic_ack(delivery.delivery_tag, one).await;
            }
            drop(permit);
        });
    }
    Ok(())
}

impl Shop {
    async fn handle(&self, delivery: &Delivery) -> anyhow::Result<()> {
        let job: Nothing = serde_json::from_slice(&delivery.data).context("not a job of ours")?;
        carry_out(self.tally.work).await;
        self.tally.note(&job);
        match &self.confirmed {
            Some(channel) if job.fails() && !is_copy(delivery) => {
                self.again(channel, delivery).await
            }
            _ => Ok(()),
        }
    }

    /// The cheapest retry there is: a copy to the end of the queue, without a delay.
    async fn again(&self, channel: &Channel, delivery: &Delivery) -> anyhow::Result<()> {
        let mut headers = FieldTable::default();
        headers.insert(AGAIN.into(), AMQPValue::Boolean(true));
        let properties = delivery.properties.clone().with_headers(headers);
        send(channel, &self.exchange, &delivery.data, properties).await
    }
}

fn is_copy(delivery: &Delivery) -> bool {
    let headers = delivery.properties.headers().as_ref();
    headers.is_some_and(|headers| headers.contains_key(AGAIN))
}

/// Connects first, so that the time is that of publishing.
pub(crate) async fn publish(job: &Job<'_>, jobs: u64) -> anyhow::Result<Account> {
    let connection = connect(job).await?;
    let channel = confirming(&connection).await?;
    let exchange = job.config.topology().jobs_exchange();
    let (tally, payload) = (&job.tally, job.order.payload);
    child::say(&Event::Working);
    tally.begin();
    let publishes = (0..jobs).map(|n| {
        let channel = &channel;
        async move {
            let one = Nothing::new(n, payload);
            let body = serde_json::to_vec(&one)?;
            send(channel, exchange, &body, properties(n)).await?;
            tally.note(&one);
            anyhow::Ok(())
        }
    });
    match job.order.contestant {
        Contestant::BareOneByOne => {
            for publish in publishes {
                publish.await?;
            }
        }
        _ => stream::iter(publishes).buffer_unordered(WINDOW).try_collect::<()>().await?,
    }
    let resident = super::meter::resident();
    connection.close(200, "done".into()).await.context("failed to close")?;
    Ok(job.account(resident))
}

/// What Forebay sets too: an id, a kind, persistence.
fn properties(n: u64) -> BasicProperties {
    BasicProperties::default()
        .with_type(Nothing::KIND.into())
        .with_message_id(n.to_string().into())
        .with_content_type("application/json".into())
        .with_delivery_mode(2)
}

/// Mandatory, as everything that Forebay sends.
async fn send(
    channel: &Channel,
    exchange: &str,
    body: &[u8],
    properties: BasicProperties,
) -> anyhow::Result<()> {
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    let key = Nothing::QUEUE.into();
    let sent = channel.basic_publish(exchange.into(), key, options, body, properties).await?;
    let confirmed = sent.await?;
    if !confirmed.is_ack() {
        bail!("the broker refused a publish of the reference");
    }
    Ok(())
}

async fn connect(job: &Job<'_>) -> anyhow::Result<Connection> {
    Ok(link::bare::connect(job.config, "forebay bench, the reference").await?)
}

async fn confirming(connection: &Connection) -> anyhow::Result<Channel> {
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok(channel)
}

/// Consumes, as soon as the queue is there.
async fn subscribe(connection: &Connection, job: &Job<'_>) -> anyhow::Result<(Channel, Consumer)> {
    let queue = job.config.topology().queue(Nothing::QUEUE);
    loop {
        let channel = connection.create_channel().await?;
        channel.basic_qos(job.order.prefetch, BasicQosOptions::default()).await?;
        let options = BasicConsumeOptions::default();
        let (name, tag) = (queue.as_str().into(), "reference".into());
        match channel.basic_consume(name, tag, options, FieldTable::default()).await {
            Ok(deliveries) => return Ok((channel, deliveries)),
            Err(error) if error.to_string().contains("NOT_FOUND") => time::sleep(LOOK).await,
            Err(error) => return Err(error).context("the reference cannot consume"),
        }
    }
}
