//! An engine's two sockets, as far as a follower can tell: PUB for the live stream, ROUTER for replay.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;
use tokio::task::JoinHandle;
use zmtp::{read_frame, read_message, shake, write_message};

type Batch = (u64, Vec<u8>);

pub struct Publisher {
    live: Arc<TcpListener>,
    replay: Arc<TcpListener>,
    sent: broadcast::Sender<Batch>,
    kept: Arc<Mutex<Vec<Batch>>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Publisher {
    pub async fn start() -> Self {
        let bind = || async { Arc::new(TcpListener::bind("127.0.0.1:0").await.unwrap()) };
        let (live, replay) = (bind().await, bind().await);
        let mut publisher = Self {
            live,
            replay,
            sent: broadcast::channel(1 << 16).0,
            kept: Arc::default(),
            tasks: Vec::new(),
        };
        publisher.run();
        publisher
    }

    pub fn addresses(&self) -> (SocketAddr, SocketAddr) {
        (self.live.local_addr().unwrap(), self.replay.local_addr().unwrap())
    }

    /// Another process at the same place: connections are gone, numbers begin at 0.
    pub fn restart(&mut self) {
        self.stop();
        self.sent = broadcast::channel(1 << 16).0;
        self.kept = Arc::default();
        self.run();
    }

    fn stop(&mut self) {
        self.tasks.drain(..).for_each(|task| task.abort());
        // Those who are subscribed end with their channel.
        self.sent = broadcast::channel(1).0;
    }

    fn run(&mut self) {
        let (live, sent) = (Arc::clone(&self.live), self.sent.downgrade());
        self.tasks.push(tokio::spawn(async move {
            while let (Ok((stream, _)), Some(sent)) = (live.accept().await, sent.upgrade()) {
                tokio::spawn(publish(stream, sent.subscribe()));
            }
        }));
        let (replay, kept) = (Arc::clone(&self.replay), Arc::downgrade(&self.kept));
        self.tasks.push(tokio::spawn(async move {
            while let (Ok((stream, _)), Some(kept)) = (replay.accept().await, kept.upgrade()) {
                let kept = kept.lock().unwrap().clone();
                tokio::spawn(answer(stream, kept));
            }
        }));
    }

    /// Whether somebody is subscribed.
    pub fn is_heard(&self) -> bool {
        self.sent.receiver_count() > 0
    }

    /// Keeps a batch for replay, and sends it.
    pub fn publish(&self, payload: Vec<u8>) {
        let batch = self.keep(payload);
        let _ = self.sent.send(batch);
    }

    /// Keeps a batch that gets lost on its way.
    pub fn lose(&self, payload: Vec<u8>) {
        self.keep(payload);
    }

    /// Sends the newest once more.
    pub fn repeat(&self) {
        if let Some(last) = self.kept.lock().unwrap().last() {
            let _ = self.sent.send(last.clone());
        }
    }

    fn keep(&self, payload: Vec<u8>) -> Batch {
        let mut kept = self.kept.lock().unwrap();
        let batch = (kept.len() as u64, payload);
        kept.push(batch.clone());
        batch
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn publish(mut stream: TcpStream, mut sent: broadcast::Receiver<Batch>) -> io::Result<()> {
    shake(&mut stream, "PUB", &["SUB"]).await?;
    assert_eq!(read_frame(&mut stream, 100).await?.body, b"\x01kv");
    while let Ok((sequence, payload)) = sent.recv().await {
        write_message(&mut stream, &[b"kv@engine", &sequence.to_be_bytes(), &payload]).await?;
    }
    Ok(())
}

async fn answer(mut stream: TcpStream, kept: Vec<Batch>) -> io::Result<()> {
    shake(&mut stream, "ROUTER", &["DEALER", "REQ"]).await?;
    let request = read_message(&mut stream, 2, 100).await?;
    let from = u64::from_be_bytes(request[1].as_slice().try_into().unwrap());
    for (sequence, payload) in kept.iter().filter(|(sequence, _)| *sequence >= from) {
        write_message(&mut stream, &[b"", &sequence.to_be_bytes(), payload]).await?;
    }
    write_message(&mut stream, &[b"", &u64::MAX.to_be_bytes(), b""]).await
}
