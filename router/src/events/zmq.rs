//! Follows the events of a foreign engine: SUB for the live stream, DEALER for replay.
//!
//! Every replay has a connection of its own: a replay that is not wanted any more ends with its connection, and no
//! answer to an old request is taken for one to a new.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use base::Clock;
use tokio::io::BufReader;
use tokio::net::TcpStream;
use zmtp::{read_message, shake, write_message};

use super::{Backoff, Heard, Place};
use crate::Seat;
use crate::source::{self, State, Tail, TailLimits, Told, Want};

/// For a connection and its handshake.
const PATIENCE: Duration = Duration::from_secs(5);
const REST: Duration = Duration::from_millis(50);
const REST_MAX: Duration = Duration::from_secs(5);
/// A batch with everything around it.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Identity or delimiter, topic, sequence number, payload.
const FRAMES_MAX: usize = 4;
/// The number that ends a replay.
const END: u64 = u64::MAX;

/// An engine to follow.
#[derive(Clone, Debug)]
pub struct Publisher {
    pub seat: Seat,
    pub engine: source::Engine,
    /// `tcp://HOST:PORT` of its PUB socket.
    pub live: String,
    /// `tcp://HOST:PORT` of its ROUTER socket, if it replays.
    pub replay: Option<String>,
    /// What topics begin with that are of interest.
    pub topic: String,
    /// Makes rests differ.
    pub seed: u64,
}

type Connection = BufReader<TcpStream>;
/// The connection comes back with the message: half of one that was read must not be lost.
type Reading = Pin<Box<dyn Future<Output = (Connection, io::Result<Batch>)> + Send>>;
type Replaying = Pin<Box<dyn Future<Output = io::Result<(Connection, Batch)>> + Send>>;

struct Batch {
    sequence: u64,
    payload: Vec<u8>,
}

/// Follows until it is dropped.
pub async fn follow(publisher: Publisher, told: Arc<dyn Told>, heard: Arc<dyn Heard>, clock: Arc<dyn Clock>) {
    let mut place = Place::new(publisher.seat, told, heard);
    let offers = match publisher.replay {
        Some(_) => source::Replay::Offered,
        None => source::Replay::None,
    };
    let mut tail = Tail::new(publisher.seat, &publisher.engine, offers, TailLimits::default());
    let mut backoff = Backoff::new(REST, REST_MAX, publisher.seed);
    place.note(tail.state());
    loop {
        let Err(error) = attempt(&publisher, &mut place, &mut tail, &mut backoff, &*clock).await;
        tail.lost();
        place.note(tail.state());
        let rest = backoff.rest(None);
        tracing::debug!(seat = %publisher.seat, endpoint = publisher.live, %error, ?rest, "an events socket ended");
        place.heard.failed(publisher.seat, &error.to_string(), rest);
        tokio::time::sleep(rest).await;
    }
}

async fn attempt(
    publisher: &Publisher,
    place: &mut Place,
    tail: &mut Tail,
    backoff: &mut Backoff,
    clock: &dyn Clock,
) -> io::Result<std::convert::Infallible> {
    let subscribed = in_time(subscribe(publisher.live.clone(), publisher.topic.clone())).await?;
    let mut live = read(subscribed);
    let mut replay: Option<Replaying> = None;
    let mut want = tail.joined(clock.now(), &*place.told);
    loop {
        if !tail.is_replaying() {
            // It took too long, or is not wanted any more.
            replay = None;
        }
        if let (Want::Replay { from }, Some(endpoint)) = (want, &publisher.replay) {
            replay = Some(Box::pin(begin_replay(endpoint.clone(), from)));
        }
        place.note(tail.state());
        if tail.state() == State::Exact {
            backoff.reset();
        }
        let wait = tail.deadline().map(|deadline| deadline.since(clock.now()));
        want = tokio::select! {
            (connection, batch) = &mut live => {
                live = read(connection);
                let Batch { sequence, payload } = batch?;
                tail.live(clock.now(), sequence, &payload, &*place.told)
            }
            answer = next_of(&mut replay) => take_replayed(answer, &mut replay, tail, place, clock),
            () = sleep(wait) => tail.idle(clock.now()),
        };
    }
}

fn take_replayed(
    answer: io::Result<(Connection, Batch)>,
    replay: &mut Option<Replaying>,
    tail: &mut Tail,
    place: &Place,
    clock: &dyn Clock,
) -> Want {
    *replay = None;
    match answer {
        Err(error) => {
            tracing::debug!(%error, "a replay of events failed");
            tail.replay_failed(clock.now());
            Want::Nothing
        }
        Ok((_, Batch { sequence: END, .. })) => tail.replay_done(clock.now(), &*place.told),
        Ok((connection, Batch { sequence, payload })) => {
            *replay = Some(Box::pin(more(connection)));
            tail.replayed(clock.now(), sequence, &payload, &*place.told)
        }
    }
}

/// The next of a replay; never, if there is none.
async fn next_of(replay: &mut Option<Replaying>) -> io::Result<(Connection, Batch)> {
    match replay {
        Some(replay) => replay.await,
        None => std::future::pending().await,
    }
}

async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

async fn connect(endpoint: &str) -> io::Result<TcpStream> {
    let wrong = || io::Error::new(io::ErrorKind::InvalidInput, "an endpoint is written tcp://HOST:PORT");
    let stream = TcpStream::connect(endpoint.strip_prefix("tcp://").ok_or_else(wrong)?).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn subscribe(endpoint: String, topic: String) -> io::Result<Connection> {
    let mut stream = connect(&endpoint).await?;
    shake(&mut stream, "SUB", &["PUB", "XPUB"]).await?;
    write_message(&mut stream, &[&[&[1], topic.as_bytes()].concat()]).await?;
    Ok(BufReader::with_capacity(64 << 10, stream))
}

async fn begin_replay(endpoint: String, from: u64) -> io::Result<(Connection, Batch)> {
    let asked = in_time(async {
        let mut stream = connect(&endpoint).await?;
        shake(&mut stream, "DEALER", &["ROUTER"]).await?;
        write_message(&mut stream, &[b"", &from.to_be_bytes()]).await?;
        Ok(BufReader::with_capacity(64 << 10, stream))
    });
    more(asked.await?).await
}

async fn more(connection: Connection) -> io::Result<(Connection, Batch)> {
    let (connection, batch) = read(connection).await;
    Ok((connection, batch?))
}

fn read(mut connection: Connection) -> Reading {
    Box::pin(async move {
        let message = read_message(&mut connection, FRAMES_MAX, MESSAGE_BYTES_MAX).await;
        (connection, message.and_then(batch))
    })
}

/// Whatever stands before: a topic, a delimiter, both or nothing.
fn batch(mut frames: Vec<Vec<u8>>) -> io::Result<Batch> {
    let wrong =
        || io::Error::new(io::ErrorKind::InvalidData, "a message without sequence number and payload");
    let (payload, sequence) = (frames.pop().ok_or_else(wrong)?, frames.pop().ok_or_else(wrong)?);
    let sequence = <[u8; 8]>::try_from(sequence).map_err(|_| wrong())?;
    Ok(Batch { sequence: u64::from_be_bytes(sequence), payload })
}

async fn in_time<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(PATIENCE, work).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_with_and_without_topic_and_delimiter_are_the_same_batch() {
        let sequence = 7u64.to_be_bytes().to_vec();
        let tail = [sequence.clone(), b"payload".to_vec()];
        for head in [vec![], vec![Vec::new()], vec![b"kv".to_vec()], vec![Vec::new(), b"kv".to_vec()]] {
            let batch = batch([&head[..], &tail].concat()).unwrap();
            assert_eq!((batch.sequence, batch.payload.as_slice()), (7, &b"payload"[..]));
        }
        assert!(batch(vec![b"short".to_vec(), Vec::new()]).is_err());
        assert!(batch(vec![sequence]).is_err());
    }
}
