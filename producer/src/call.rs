//! Publish a job and wait for its answer.
//! In: a job and how long to wait. Out: the handler's result, or why there is none.

use std::time::Duration;

use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{BasicConsumeOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::{self, Instant};

use crate::config::after;
use crate::error::{CallError, PublishError};
use crate::link::connection::Link;
use crate::link::fault::Fault;
use crate::link::io;
use crate::options::PublishOptions;
use crate::producer::Producer;
use crate::wire::envelope::new_id;
use crate::wire::job::Job;

#[derive(Deserialize)]
struct Dead {
    reason: String,
    message: String,
}

impl Producer {
    /// Publishes a job and waits for what its handler returns, at most for `patience`.
    ///
    /// The answer comes over a queue of this call's own, which ends with it. A call is for work
    /// that the caller waits for anyway: when the caller goes away, the job runs all the same.
    ///
    /// # Errors
    /// [`CallError`]: not published, not answered in time, or the job became a dead letter.
    pub async fn call<J: Job, T: DeserializeOwned>(
        &self,
        job: &J,
        patience: Duration,
    ) -> Result<T, CallError> {
        self.call_with(job, PublishOptions::new(), patience).await
    }

    /// As [`Producer::call`], with options; an idempotency key gives the same answer to each caller.
    /// Id, deadline and address of the answer are the call's own.
    ///
    /// # Errors
    /// As [`Producer::call`].
    pub async fn call_with<J: Job, T: DeserializeOwned>(
        &self,
        job: &J,
        options: PublishOptions,
        patience: Duration,
    ) -> Result<T, CallError> {
        let deadline = after(patience);
        let id = new_id();
        let (channel, mut answers, address) = self.listen(&id, deadline).await?;
        let options = options.id(&id).deadline(patience).reply_to(address);
        self.publish_with(job, options).await?;
        let answer = time::timeout_at(deadline, answers.next()).await;
        // The queue is exclusive: it goes with its consumer.
        io::handle().spawn(async move { channel.close(200, "answered".into()).await });
        match answer {
            Ok(Some(Ok(delivery))) => read(&id, &delivery),
            Ok(Some(Err(_)) | None) | Err(_) => Err(CallError::TimedOut { id }),
        }
    }

    async fn listen(
        &self,
        id: &str,
        deadline: Instant,
    ) -> Result<(Channel, Consumer, String), CallError> {
        let link: &Link = self.link();
        let address = self.topology().reply_queue(id);
        let listen = async {
            let channel = link.channel(deadline).await.map_err(|error| error.to_string())?.channel;
            let words = |error: lapin::Error| Fault::from(error).to_string();
            let options =
                QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
            let name = address.as_str();
            channel
                .queue_declare(name.into(), options, FieldTable::default())
                .await
                .map_err(words)?;
            let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
            let answers = channel
                .basic_consume(name.into(), "answers".into(), options, FieldTable::default())
                .await
                .map_err(words)?;
            Ok((channel, answers))
        };
        let heard = match time::timeout_at(deadline, listen).await {
            Ok(heard) => heard,
            Err(_) => Err("the broker did not answer".to_owned()),
        };
        let (channel, answers) = heard.map_err(|because| PublishError::Unconfirmed {
            id: id.to_owned(),
            may_have_arrived: false,
            because,
        })?;
        Ok((channel, answers, address))
    }
}

fn read<T: DeserializeOwned>(id: &str, answer: &Delivery) -> Result<T, CallError> {
    let undecodable = |source| CallError::Decode { id: id.to_owned(), source };
    let kind = answer.properties.kind().as_ref().map_or("", |kind| kind.as_str());
    if kind == "reply.dead" {
        let dead: Dead = serde_json::from_slice(&answer.data).map_err(undecodable)?;
        return Err(CallError::Dead {
            id: id.to_owned(),
            reason: dead.reason,
            message: dead.message,
        });
    }
    serde_json::from_slice(&answer.data).map_err(undecodable)
}
