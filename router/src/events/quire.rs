//! Follows the events of one of our replicas.

use std::sync::Arc;
use std::time::Duration;

use base::Clock;
use proto::v1::KvEventsResponse;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt;

use super::{Backoff, Channel, ChannelError, Heard, Key, Place};
use crate::Seat;
use crate::source::{Follower, Limits, State, Told, Verdict, Why};

/// For a connection, and for the first message of a stream.
const PATIENCE: Duration = Duration::from_secs(5);
const REST: Duration = Duration::from_millis(50);
const REST_MAX: Duration = Duration::from_secs(5);

/// A replica to follow.
#[derive(Clone, Debug)]
pub struct Replica {
    pub seat: Seat,
    /// `HOST:PORT` of its gRPC server.
    pub address: String,
    /// An operator's.
    pub key: Option<Key>,
    /// Makes rests differ.
    pub seed: u64,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error("{}: {}", .0.code(), .0.message())]
    Status(Status),
    #[error("the stream makes no sense: {0:?}")]
    Senseless(Why),
    #[error("nothing was said for too long")]
    Silent,
}

impl Ended {
    /// What the replica asks for.
    fn rest(&self) -> Option<Duration> {
        let Ended::Status(status) = self else { return None };
        let asked = status.get_error_details().retry_info().and_then(|info| info.retry_delay);
        // A wrong key, or no events: this takes a person.
        let is_refused = matches!(
            status.code(),
            Code::Unauthenticated | Code::PermissionDenied | Code::FailedPrecondition | Code::Unimplemented
        );
        if is_refused { Some(REST_MAX) } else { asked }
    }
}

/// Follows until it is dropped.
pub async fn follow(replica: Replica, told: Arc<dyn Told>, heard: Arc<dyn Heard>, clock: Arc<dyn Clock>) {
    let mut place = Place::new(replica.seat, told, heard);
    let mut follower = Follower::new(replica.seat, Limits::default());
    let mut backoff = Backoff::new(REST, REST_MAX, replica.seed);
    place.note(follower.state());
    loop {
        let ended = attempt(&replica, &mut place, &mut follower, &mut backoff, &*clock).await;
        follower.lost();
        place.note(follower.state());
        let rest = backoff.rest(ended.rest());
        tracing::debug!(seat = %replica.seat, address = replica.address, %ended, ?rest, "a stream of events ended");
        place.heard.failed(replica.seat, &ended.to_string(), rest);
        tokio::time::sleep(rest).await;
    }
}

/// One connection, one stream.
async fn attempt(
    replica: &Replica,
    place: &mut Place,
    follower: &mut Follower,
    backoff: &mut Backoff,
    clock: &dyn Clock,
) -> Ended {
    let mut stream = match begin(replica, follower, clock).await {
        Ok(stream) => stream,
        Err(ended) => return ended,
    };
    loop {
        let left = follower.deadline().since(clock.now());
        let message = match tokio::time::timeout(left, stream.message()).await {
            Err(_) => match follower.idle(clock.now()) {
                Verdict::Reconnect(_) => return Ended::Silent,
                Verdict::GoOn => continue,
            },
            Ok(Err(status)) => return Ended::Status(status),
            Ok(Ok(None)) => return Ended::Status(Status::unavailable("the stream ended")),
            Ok(Ok(Some(message))) => message,
        };
        let verdict = follower.hear(clock.now(), message, &*place.told);
        place.note(follower.state());
        if let Some(load) = follower.take_load() {
            place.heard.load(replica.seat, &load);
        }
        if let Verdict::Reconnect(why) = verdict {
            return Ended::Senseless(why);
        }
        if follower.state() == State::Exact {
            backoff.reset();
        }
    }
}

async fn begin(
    replica: &Replica,
    follower: &mut Follower,
    clock: &dyn Clock,
) -> Result<Streaming<KvEventsResponse>, Ended> {
    let channel = Channel::open(&replica.address, replica.key.clone(), PATIENCE).await?;
    let mut cache = channel.cache();
    let answer = cache.kv_events(follower.request(clock.now()));
    let answer = tokio::time::timeout(PATIENCE, answer).await.map_err(|_| Ended::Silent)?;
    Ok(answer.map_err(Ended::Status)?.into_inner())
}
