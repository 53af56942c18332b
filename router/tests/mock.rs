//! A replica that does as it is told: answers, streams in steps, refuses, hangs, dies.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// What a mock does with requests.
#[derive(Clone, Debug)]
pub enum Script {
    /// One whole answer.
    Whole(StatusCode, &'static str),
    /// A refusal with `Retry-After`.
    Busy,
    /// Takes the request and says nothing.
    Hang,
    /// Events as they are handed to [`Mock::say`].
    Stream,
    /// Promises a body and closes in the midst of it.
    Cut,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Heard {
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

struct State {
    script: Mutex<Script>,
    models: Mutex<Vec<String>>,
    is_healthy: AtomicBool,
    heard: Mutex<Vec<Heard>>,
    streams: Mutex<Vec<mpsc::UnboundedSender<Option<Bytes>>>>,
    /// Streams that their reader has let go of.
    dropped: AtomicUsize,
}

pub struct Mock {
    pub address: SocketAddr,
    state: Arc<State>,
    stop: watch::Sender<bool>,
}

impl Mock {
    pub async fn start(script: Script) -> Self {
        Self::serving(script, &["m"]).await
    }

    pub async fn serving(script: Script, models: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, script, models)
    }

    fn on(listener: TcpListener, script: Script, models: &[&str]) -> Self {
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            script: Mutex::new(script),
            models: Mutex::new(models.iter().map(|name| (*name).to_owned()).collect()),
            is_healthy: AtomicBool::new(true),
            heard: Mutex::default(),
            streams: Mutex::default(),
            dropped: AtomicUsize::new(0),
        });
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(accept(listener, Arc::clone(&state), stopped));
        Self { address, state, stop }
    }

    /// Dies: every connection is cut and the port closed.
    pub fn kill(&self) {
        let _ = self.stop.send(true);
    }

    /// Another process at the same address.
    pub async fn reborn(&self, script: Script) -> Self {
        Self::on(TcpListener::bind(self.address).await.unwrap(), script, &["m"])
    }

    pub fn play(&self, script: Script) {
        *self.state.script.lock().unwrap() = script;
    }

    pub fn serve(&self, models: &[&str]) {
        *self.state.models.lock().unwrap() = models.iter().map(|name| (*name).to_owned()).collect();
    }

    pub fn set_healthy(&self, is_healthy: bool) {
        self.state.is_healthy.store(is_healthy, Ordering::SeqCst);
    }

    pub fn heard(&self) -> Vec<Heard> {
        self.state.heard.lock().unwrap().clone()
    }

    pub fn dropped(&self) -> usize {
        self.state.dropped.load(Ordering::SeqCst)
    }

    /// Sends an event to every open stream; `None` ends them.
    pub fn say(&self, event: Option<&str>) {
        let event = event.map(|text| Bytes::from(format!("data: {text}\n\n")));
        self.state.streams.lock().unwrap().retain(|stream| stream.send(event.clone()).is_ok());
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn accept(listener: TcpListener, state: Arc<State>, mut stopped: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted.unwrap().0,
            _ = stopped.wait_for(|is_stopped| *is_stopped) => return,
        };
        let state = Arc::clone(&state);
        connections.spawn(async move {
            let service = service_fn(move |request| answer(Arc::clone(&state), request));
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

type Answer = Result<Response<BoxBody<Bytes, std::io::Error>>, Infallible>;

async fn answer(state: Arc<State>, request: Request<Incoming>) -> Answer {
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await else { return Ok(whole(StatusCode::BAD_REQUEST, "")) };
    let path = head.uri.path().to_owned();
    match path.as_str() {
        "/health" if state.is_healthy.load(Ordering::SeqCst) => return Ok(whole(StatusCode::OK, "")),
        "/health" => return Ok(whole(StatusCode::SERVICE_UNAVAILABLE, "")),
        // As engines of another make answer: they tell no port for events.
        "/version" => return Ok(whole(StatusCode::OK, r#"{"version":"mock"}"#)),
        "/v1/models" => {
            let names: Vec<String> =
                state.models.lock().unwrap().iter().map(|m| format!(r#"{{"id":"{m}"}}"#)).collect();
            return Ok(whole(StatusCode::OK, format!(r#"{{"data":[{}]}}"#, names.join(","))));
        }
        _ => {}
    }
    state.heard.lock().unwrap().push(Heard { path, headers: head.headers, body: body.to_bytes() });
    let script = state.script.lock().unwrap().clone();
    Ok(match script {
        Script::Whole(status, said) => whole(status, said),
        Script::Busy => {
            let mut response = whole(StatusCode::SERVICE_UNAVAILABLE, r#"{"error":{"code":"overloaded"}}"#);
            response.headers_mut().insert("retry-after", 1.into());
            response
        }
        Script::Hang => std::future::pending().await,
        Script::Stream => stream(&state),
        Script::Cut => cut(),
    })
}

fn whole(status: StatusCode, said: impl Into<Bytes>) -> Response<BoxBody<Bytes, std::io::Error>> {
    let body = Full::new(said.into()).map_err(|never| match never {}).boxed();
    Response::builder().status(status).header("content-type", "application/json").body(body).unwrap()
}

fn stream(state: &Arc<State>) -> Response<BoxBody<Bytes, std::io::Error>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    state.streams.lock().unwrap().push(sender);
    let body = Events { receiver, state: Arc::clone(state), is_over: false };
    Response::builder().header("content-type", "text/event-stream").body(body.boxed()).unwrap()
}

/// Says that it is longer than it is.
fn cut() -> Response<BoxBody<Bytes, std::io::Error>> {
    struct Half(bool);
    impl Body for Half {
        type Data = Bytes;
        type Error = std::io::Error;
        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
            Poll::Ready(Some(match std::mem::replace(&mut self.0, true) {
                false => Ok(Frame::data(Bytes::from_static(b"{\"half\":"))),
                true => Err(std::io::Error::other("cut")),
            }))
        }
    }
    Response::builder().header("content-length", 100).body(Half(false).boxed()).unwrap()
}

struct Events {
    receiver: mpsc::UnboundedReceiver<Option<Bytes>>,
    state: Arc<State>,
    is_over: bool,
}

impl Body for Events {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        match self.receiver.poll_recv(cx) {
            Poll::Ready(Some(Some(event))) => Poll::Ready(Some(Ok(Frame::data(event)))),
            Poll::Ready(_) => {
                self.is_over = true;
                Poll::Ready(None)
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        if !self.is_over {
            self.state.dropped.fetch_add(1, Ordering::SeqCst);
        }
    }
}
