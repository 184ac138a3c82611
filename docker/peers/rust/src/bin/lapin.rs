//! The bare client library at its best: what any framework on it could reach at most.
//! No retries, no dead letters, no restored connections: an error ends it.

use std::time::Instant;

use futures_util::{FutureExt, StreamExt, future};
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use peers::{PREFETCH, Tally, Task, WINDOW, Work};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let url = peers::variable("AMQP_URL")?;
    let queue = peers::variable("PEERS_QUEUE")?;
    let connection = Connection::connect(&url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.as_str().into(), durable, FieldTable::default()).await?;
    match peers::task()? {
        Task::Publish { jobs } => publish(&channel, &queue, jobs).await?,
        Task::Work => tokio::select! {
            ended = work(&channel, &queue) => ended?,
            () = peers::told_to_stop() => {}
        },
    }
    connection.close(200, "done".into()).await?;
    Ok(())
}

/// Persistent, mandatory, confirmed, with a window of them on its way.
async fn publish(channel: &Channel, queue: &str, jobs: u64) -> anyhow::Result<()> {
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let began = Instant::now();
    let mut next = 0;
    while next < jobs {
        let end = jobs.min(next + WINDOW as u64);
        let window = (next..end).map(|n| async move {
            let payload = serde_json::to_vec(&Work::new(n))?;
            let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            let persistent = BasicProperties::default().with_delivery_mode(2);
            let sent =
                channel.basic_publish("".into(), queue.into(), options, &payload, persistent);
            anyhow::ensure!(sent.await?.await?.is_ack(), "the broker refused job {n}");
            Ok(())
        });
        future::try_join_all(window).await?;
        next = end;
    }
    peers::published(began.elapsed());
    Ok(())
}

/// Takes what is there, decodes and counts it, and acks it with one frame.
async fn work(channel: &Channel, queue: &str) -> anyhow::Result<()> {
    let tally = Tally::begin()?;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    let mut deliveries =
        channel.basic_consume(queue.into(), "peers".into(), options, FieldTable::default()).await?;
    while let Some(delivery) = deliveries.next().await {
        let mut delivery = delivery?;
        loop {
            tally.job(&serde_json::from_slice(&delivery.data)?);
            match deliveries.next().now_or_never() {
                Some(Some(next)) => delivery = next?,
                _ => break,
            }
        }
        channel.basic_ack(delivery.delivery_tag, BasicAckOptions { multiple: true }).await?;
    }
    anyhow::bail!("the broker ended the consumer")
}
