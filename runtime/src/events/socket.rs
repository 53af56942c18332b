//! The two sockets: PUB for the live stream, ROUTER for replay.
//!
//! Neither asks for a key, so a peer must cost little: it has one record in hand at most, encoded when it is sent;
//! a peer that does not shake hands or does not take a record in time is cut, and so is one that is in the midst of
//! taking tokens that are purged.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{BufReader, BufWriter, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use zmtp::{Frame, read_frame, shake, write_message};

use super::hub::EventHub;
use super::log::Read;
use super::record::{Change, Record};
use super::schema::encode;

/// Subscribers and replaying clients at a time, each.
const PEERS_MAX: usize = 256;
/// Records of replays being encoded and sent at a time, of all clients together.
const REPLAYS_MAX: usize = 8;
/// For the handshake, and for a record to be taken.
const PATIENCE: Duration = Duration::from_secs(10);
/// Largest frame that a peer may send: a topic or a sequence number.
const FRAME_BYTES_MAX: usize = 64 << 10;
/// Ends a replay.
const END: [u8; 8] = (-1i64).to_be_bytes();

/// Where events are served.
pub struct EventServer {
    hub: EventHub,
    publisher: TcpListener,
    replay: Option<TcpListener>,
}

#[derive(Debug, thiserror::Error)]
#[error("the events endpoint {endpoint}: {source}")]
pub struct EventServerError {
    pub endpoint: String,
    pub source: io::Error,
}

impl EventServer {
    /// Binds `tcp://HOST:PORT` endpoints.
    pub async fn bind(
        hub: EventHub,
        publisher: &str,
        replay: Option<&str>,
    ) -> Result<Self, EventServerError> {
        let replay = match replay {
            Some(endpoint) => Some(listen(endpoint).await?),
            None => None,
        };
        Ok(Self { hub, publisher: listen(publisher).await?, replay })
    }

    /// The addresses that were bound: live, and replay if there is one.
    pub fn addresses(&self) -> io::Result<(std::net::SocketAddr, Option<std::net::SocketAddr>)> {
        let replay = self.replay.as_ref().map(TcpListener::local_addr).transpose()?;
        Ok((self.publisher.local_addr()?, replay))
    }

    /// Serves until the runtime ends.
    pub async fn serve(self) {
        let Self { hub, publisher, replay } = self;
        let source = Source { hub, replays: Arc::new(Semaphore::new(REPLAYS_MAX)) };
        let other = source.clone();
        let replaying = async move {
            if let Some(listener) = replay {
                accept(listener, other, replay_to).await;
            }
        };
        tokio::join!(accept(publisher, source, publish_to), replaying);
    }
}

/// What peers are served from.
#[derive(Clone)]
struct Source {
    hub: EventHub,
    replays: Arc<Semaphore>,
}

async fn listen(endpoint: &str) -> Result<TcpListener, EventServerError> {
    let failed = |source| EventServerError { endpoint: endpoint.to_owned(), source };
    let address = endpoint.strip_prefix("tcp://").ok_or_else(|| {
        failed(io::Error::new(io::ErrorKind::InvalidInput, "an endpoint is written tcp://HOST:PORT"))
    })?;
    let address =
        address.strip_prefix('*').map_or_else(|| address.to_owned(), |port| format!("0.0.0.0{port}"));
    TcpListener::bind(address).await.map_err(failed)
}

async fn accept<F>(listener: TcpListener, source: Source, serve: fn(TcpStream, Source) -> F)
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let peers = Arc::new(Semaphore::new(PEERS_MAX));
    loop {
        let Ok(seat) = Arc::clone(&peers).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else { continue };
        let source = source.clone();
        tokio::spawn(async move {
            if let Err(error) = serve(stream, source).await {
                tracing::debug!(%error, "an events peer left");
            }
            drop(seat);
        });
    }
}

/// Topics that a subscriber asked for.
#[derive(Default)]
struct Topics(BTreeSet<Vec<u8>>);

impl Topics {
    /// A subscription as a message (0 or 1, then the topic) or as a command of later versions.
    fn note(&mut self, frame: Frame) {
        let change = match (frame.is_command, frame.body.split_first()) {
            (false, Some((&adds, topic))) if adds <= 1 => Some((adds == 1, topic.to_vec())),
            (true, _) => frame
                .body
                .strip_prefix(b"\x09SUBSCRIBE")
                .map(|topic| (true, topic.to_vec()))
                .or_else(|| frame.body.strip_prefix(b"\x06CANCEL").map(|topic| (false, topic.to_vec()))),
            _ => None,
        };
        match change {
            Some((true, topic)) => drop(self.0.insert(topic)),
            Some((false, topic)) => drop(self.0.remove(&topic)),
            None => {}
        }
    }

    fn hold(&self, topic: &str) -> bool {
        self.0.iter().any(|prefix| topic.as_bytes().starts_with(prefix))
    }
}

/// What takes longer than a peer that listens.
async fn in_time<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(PATIENCE, work).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

async fn publish_to(mut stream: TcpStream, Source { hub, .. }: Source) -> io::Result<()> {
    in_time(shake(&mut stream, "PUB", &["SUB", "XSUB"])).await?;
    let mut head = hub.head();
    let mut purges = hub.purges();
    let mut next = hub.extent().next;
    let (reader, writer) = split(stream);
    let mut writer = BufWriter::new(writer);
    let mut waiting = Box::pin(next_frame(BufReader::new(reader)));
    let mut topics = Topics::default();
    loop {
        head.borrow_and_update();
        purges.borrow_and_update();
        match hub.read(next) {
            Read::Record(record) if topics.hold(hub.topic()) => {
                send(&mut writer, &hub, &record, hub.topic().as_bytes(), &mut purges).await?;
                next = record.sequence + 1;
            }
            Read::Record(record) => next = record.sequence + 1,
            Read::Missed { oldest } => next = oldest,
            Read::Nothing => {}
            Read::Ended => return Ok(()),
        }
        // A subscription may come at any time; others want their turn too.
        tokio::select! {
            biased;
            (reader, frame) = waiting.as_mut() => {
                topics.note(frame?);
                waiting.set(next_frame(reader));
            }
            () = tokio::task::yield_now(), if next < hub.extent().next => {}
            changed = head.changed() => if changed.is_err() { return Ok(()) },
        }
    }
}

/// Kept until it is there: half of a frame that was read must not be lost.
async fn next_frame<R: tokio::io::AsyncRead + Unpin>(mut reader: R) -> (R, io::Result<Frame>) {
    let frame = read_frame(&mut reader, FRAME_BYTES_MAX).await;
    (reader, frame)
}

/// Sends one record. Ends with an error if it names tokens that are purged meanwhile: the peer is then cut.
async fn send<W>(
    writer: &mut W,
    hub: &EventHub,
    record: &Record,
    first: &[u8],
    purges: &mut watch::Receiver<u64>,
) -> io::Result<()>
where
    W: tokio::io::AsyncWrite + Unpin,
{
    let payload = encode(record, hub.rank());
    let sequence = record.sequence.to_be_bytes();
    let frames = [first, &sequence, &payload];
    let mut sent = std::pin::pin!(in_time(write_message(writer, &frames)));
    loop {
        tokio::select! {
            biased;
            done = &mut sent => return done,
            Ok(()) = purges.changed() => if has_purged_tokens(hub, record) {
                return Err(io::Error::other("in the midst of tokens that are purged"));
            },
        }
    }
}

fn has_purged_tokens(hub: &EventHub, record: &Record) -> bool {
    record.changes.iter().any(|change| match change {
        Change::Stored(run) => !run.tokens.is_empty() && hub.is_purged(&run.owner),
        _ => false,
    })
}

/// A request is an empty frame and the first sequence number wanted; each batch goes back as an answer,
/// then the end mark.
async fn replay_to(mut stream: TcpStream, source: Source) -> io::Result<()> {
    in_time(shake(&mut stream, "ROUTER", &["REQ", "DEALER", "ROUTER"])).await?;
    let (reader, writer) = split(stream);
    let (mut reader, mut writer) = (BufReader::new(reader), BufWriter::new(writer));
    loop {
        let mut last = Vec::new();
        loop {
            let frame = read_frame(&mut reader, FRAME_BYTES_MAX).await?;
            last = if frame.is_command { last } else { frame.body };
            if !frame.has_more {
                break;
            }
        }
        let Ok(start) = <[u8; 8]>::try_from(last.as_slice()) else { continue };
        replay(&mut writer, &source, u64::from_be_bytes(start)).await?;
        in_time(write_message(&mut writer, &[b"", &END, b""])).await?;
    }
}

/// What is there from `next` on as the request comes; what is recorded meanwhile is left to the live stream.
async fn replay<W>(writer: &mut W, Source { hub, replays }: &Source, mut next: u64) -> io::Result<()>
where
    W: tokio::io::AsyncWrite + Unpin,
{
    let end = hub.extent().next;
    let mut purges = hub.purges();
    while next < end {
        let _turn = replays.acquire().await.map_err(io::Error::other)?;
        purges.borrow_and_update();
        match hub.read(next) {
            Read::Record(record) => {
                send(writer, hub, &record, b"", &mut purges).await?;
                next = record.sequence + 1;
            }
            Read::Missed { oldest } => next = oldest,
            Read::Nothing | Read::Ended => return Ok(()),
        }
        tokio::task::yield_now().await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use base::{AdapterId, ChainHash, Generation, ManualClock, NamespaceId, Tier};
    use kvcache::{KvChange, Stored, TierEvent};

    use super::super::hub::EventsConfig;
    use super::*;

    fn removed() -> Vec<TierEvent> {
        let names = vec![ChainHash([7; 32]); 40];
        vec![TierEvent { sequence: 1, tier: Tier::Device, change: KvChange::Removed { names } }]
    }

    async fn message<S: tokio::io::AsyncRead + Unpin>(stream: &mut S) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        loop {
            let frame = read_frame(stream, 1 << 20).await.unwrap();
            let has_more = frame.has_more;
            frames.push(frame.body);
            if !has_more {
                return frames;
            }
        }
    }

    #[tokio::test]
    async fn a_subscriber_hears_its_topic_and_replays_what_it_missed() {
        let config = EventsConfig { topic: "kv@node".into(), ..EventsConfig::default() };
        let hub = EventHub::start(config, Arc::new(ManualClock::default())).unwrap();
        let any = "tcp://127.0.0.1:0";
        let server = EventServer::bind(hub.clone(), any, Some(any)).await.unwrap();
        let (live, replay) = server.addresses().unwrap();
        tokio::spawn(server.serve());
        let mut subscriber = TcpStream::connect(live).await.unwrap();
        shake(&mut subscriber, "SUB", &["PUB"]).await.unwrap();
        write_message(&mut subscriber, &[b"\x01kv@"]).await.unwrap();
        // Subscribing is not acknowledged: publish until it is heard.
        let heard = loop {
            hub.publish(removed());
            let wait = tokio::time::timeout(std::time::Duration::from_millis(20), message(&mut subscriber));
            if let Ok(heard) = wait.await {
                break heard;
            }
        };
        assert_eq!((heard[0].as_slice(), heard[1].len(), heard.len()), (&b"kv@node"[..], 8, 3));
        let mut client = TcpStream::connect(replay.unwrap()).await.unwrap();
        shake(&mut client, "REQ", &["ROUTER"]).await.unwrap();
        write_message(&mut client, &[b"", &0u64.to_be_bytes()]).await.unwrap();
        let first = message(&mut client).await;
        assert_eq!((first[0].len(), first[1].as_slice()), (0, &0u64.to_be_bytes()[..]));
        while message(&mut client).await[1] != END {}
    }

    #[tokio::test]
    async fn a_peer_in_the_midst_of_purged_tokens_is_cut() {
        let hub = EventHub::start(EventsConfig::default(), Arc::new(ManualClock::default())).unwrap();
        let stored = Stored {
            namespace: NamespaceId(5),
            generation: Generation(0),
            adapter: AdapterId(0),
            parent: None,
            names: vec![ChainHash([1; 32])],
            tokens: vec![7; 64],
            page_tokens: 64,
        };
        hub.publish(vec![TierEvent { sequence: 1, tier: Tier::Host, change: KvChange::Stored(stored) }]);
        let _ = hub.head().wait_for(|next| *next > 0).await;
        let Read::Record(record) = hub.read(0) else { panic!() };
        let (mut writer, _unread) = tokio::io::duplex(8);
        let mut purges = hub.purges();
        let mut sending = std::pin::pin!(send(&mut writer, &hub, &record, b"", &mut purges));
        tokio::select! {
            biased;
            done = &mut sending => panic!("{done:?}"),
            () = tokio::task::yield_now() => {}
        }
        hub.purge(NamespaceId(6), Generation(0));
        hub.purge(NamespaceId(5), Generation(0));
        assert_eq!(sending.await.unwrap_err().kind(), io::ErrorKind::Other);
    }

    #[tokio::test]
    async fn an_endpoint_that_cannot_be_is_refused_by_name() {
        let hub = EventHub::start(EventsConfig::default(), Arc::new(ManualClock::default())).unwrap();
        let refused = EventServer::bind(hub, "udp://x", None).await.err().unwrap().to_string();
        assert_eq!(refused, "the events endpoint udp://x: an endpoint is written tcp://HOST:PORT");
    }
}
