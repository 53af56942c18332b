//! The task that keeps watch over one replica: finds out what it serves, seats it, and says when it is gone.
//!
//! Asked twice a second over a connection of its own, because a replica with all its connections busy is not a
//! dead one. Two probes in a row that fail are enough to let go of its requests: the first may have met a restart
//! of the connection. A replica that answers 503 is alive and takes nothing; one that comes back with another model
//! changes pools.

use std::sync::Arc;
use std::time::Duration;

use base::Clock;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{self, HeaderValue};
use hyper::{Request, StatusCode};
use serde::Deserialize;
use tokio::task::JoinHandle;

use super::exact::{Asking, NotExact};
use super::router::Router;
use super::upstream::{Address, Upstream};
use crate::events::{self, Key};
use crate::fleet::{Readiness, Seating};
use crate::follow::Followed;
use crate::pool::Pool;
use crate::replica::Replica;

/// Of an answer to a probe.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// After a replica could not say how it names blocks.
const LEARN_AGAIN: Duration = Duration::from_secs(1);

/// What a replica serves.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Served {
    models: Vec<String>,
    /// Where it tells its events.
    grpc: Option<u16>,
}

/// Where a replica is seated.
struct Seated {
    pool: Arc<Pool>,
    replica: Arc<Replica>,
    served: Served,
    /// Follows its events, if it is one of ours and tells them.
    follower: Option<Follower>,
}

/// A task that ends with the seat.
struct Follower {
    task: JoinHandle<()>,
    pool: Arc<Pool>,
    asking: Arc<Asking>,
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
        self.pool.naming().leave(&self.asking);
    }
}

/// Watches the replica at `address` for as long as the router lives.
pub async fn watch(router: Arc<Router>, address: Address) {
    let upstream = Upstream::new(address.clone(), router.config.connect_timeout);
    let mut watch = Watch { router, address, upstream, seated: None, failures: 0, is_down: true };
    loop {
        watch.look().await;
        tokio::time::sleep(watch.pause()).await;
    }
}

/// Follows a replica's events once it is known to name blocks as the others do.
async fn follow(
    pool: Arc<Pool>,
    asking: Arc<Asking>,
    replica: events::quire::Replica,
    clock: Arc<dyn Clock>,
) {
    loop {
        match pool.naming().join(Arc::clone(&asking)).await {
            Ok(()) => break,
            Err(error @ (NotExact::OtherNames | NotExact::OtherModel)) => {
                tracing::warn!(replica = replica.address, %error, "its cache is guessed, not known");
                return;
            }
            Err(error) => {
                tracing::debug!(replica = replica.address, %error, "cannot learn how it names blocks");
                tokio::time::sleep(LEARN_AGAIN).await;
            }
        }
    }
    pool.followed(replica.seat);
    let told = Followed::new(&pool);
    events::quire::follow(replica, told.clone(), told, clock).await;
}

struct Watch {
    router: Arc<Router>,
    address: Address,
    /// For probes alone.
    upstream: Upstream,
    seated: Option<Seated>,
    failures: u32,
    is_down: bool,
}

impl Watch {
    /// Twice as long while nobody is there.
    fn pause(&self) -> Duration {
        let interval = self.router.config.health_interval;
        if self.is_down && self.failures > 8 { interval * 2 } else { interval }
    }

    async fn look(&mut self) {
        match self.get("/health").await {
            Ok((StatusCode::OK, _)) => self.is_up().await,
            Ok((status, _)) => self.is_unready(status),
            Err(why) => self.failed(&why),
        }
    }

    async fn is_up(&mut self) {
        self.failures = 0;
        if self.is_down || self.seated.is_none() {
            match self.ask_models().await {
                Ok(served) => self.seat(served),
                Err(why) => {
                    return tracing::warn!(replica = %self.address, why, "does not say what it serves");
                }
            }
        }
        if let Some(seated) = &self.seated {
            if std::mem::take(&mut self.is_down) {
                tracing::info!(replica = %self.address, models = ?seated.served.models, "ready");
            }
            seated.pool.probed(seated.replica.seat, Readiness::Ready);
        }
    }

    fn is_unready(&mut self, status: StatusCode) {
        self.failures = 0;
        if let Some(seated) = &self.seated {
            seated.pool.probed(seated.replica.seat, Readiness::Unhealthy);
        }
        if !std::mem::replace(&mut self.is_down, true) {
            tracing::info!(replica = %self.address, status = status.as_u16(), "takes no requests");
        }
    }

    fn failed(&mut self, why: &str) {
        self.failures = self.failures.saturating_add(1);
        if self.failures < self.router.config.health_failures {
            return;
        }
        if self.is_down {
            // Said once: it may not have been started yet.
            if self.failures == self.router.config.health_failures {
                tracing::warn!(replica = %self.address, why, "cannot be reached");
            }
            return;
        }
        self.is_down = true;
        self.upstream.forget();
        if let Some(seated) = &self.seated {
            let requests = seated.pool.lost(&seated.replica);
            tracing::warn!(replica = %self.address, why, requests, "is gone; its requests go elsewhere or end");
        }
    }

    /// Seats the replica in the pool of what it serves, if it is not there already.
    fn seat(&mut self, served: Served) {
        if self.seated.as_ref().is_some_and(|seated| seated.served == served) {
            return;
        }
        if let Some(before) = self.seated.take() {
            tracing::warn!(replica = %self.address, models = ?served.models, "serves another model now");
            drop(before.follower);
            before.pool.leave(&before.replica);
        }
        let model = match self.router.pools.open(&served.models) {
            Ok(model) => model,
            Err(error) => return tracing::error!(replica = %self.address, %error, "cannot be seated"),
        };
        let upstream = Upstream::new(self.address.clone(), self.router.config.connect_timeout);
        match model.pool.join(Seating::default(), upstream) {
            Ok(replica) => {
                let follower = served.grpc.map(|port| self.follow(port, &model.pool, &replica));
                self.seated = Some(Seated { pool: model.pool, replica, served, follower });
            }
            Err(error) => tracing::error!(replica = %self.address, %error, "cannot be seated"),
        }
    }

    /// Begins to follow a replica's events.
    fn follow(&self, port: u16, pool: &Arc<Pool>, replica: &Arc<Replica>) -> Follower {
        let host = self.address.authority.rsplit_once(':').map_or("", |(host, _)| host);
        let key = self.router.config.replica_key.as_deref().and_then(Key::new);
        let asking = Arc::new(Asking::new(format!("{host}:{port}"), key.clone()));
        let followed = events::quire::Replica {
            seat: replica.seat,
            address: format!("{host}:{port}"),
            key,
            seed: self.router.config.seed ^ u64::from(replica.seat.0),
        };
        let (pool, clock) = (Arc::clone(pool), Arc::clone(&self.router.clock));
        let task = tokio::spawn(follow(Arc::clone(&pool), Arc::clone(&asking), followed, clock));
        Follower { task, pool, asking }
    }

    /// The port of its gRPC server, if it has one and tells events there.
    async fn ask_grpc(&self) -> Option<u16> {
        #[derive(Deserialize)]
        struct Version {
            grpc_port: Option<u16>,
        }
        let (_, body) = self.get("/version").await.ok().filter(|(status, _)| *status == StatusCode::OK)?;
        serde_json::from_slice::<Version>(&body).ok()?.grpc_port
    }

    async fn ask_models(&self) -> Result<Served, String> {
        #[derive(Deserialize)]
        struct Models {
            data: Vec<Model>,
        }
        #[derive(Deserialize)]
        struct Model {
            id: String,
        }
        let (status, body) = self.get("/v1/models").await?;
        if status != StatusCode::OK {
            return Err(format!("GET /v1/models answered {}", status.as_u16()));
        }
        let models: Models = serde_json::from_slice(&body).map_err(|e| format!("GET /v1/models: {e}"))?;
        let models: Vec<String> = models.data.into_iter().map(|model| model.id).collect();
        if models.is_empty() {
            return Err("GET /v1/models lists none".into());
        }
        Ok(Served { models, grpc: self.ask_grpc().await })
    }

    async fn get(&self, path: &str) -> Result<(StatusCode, Bytes), String> {
        let asking = async {
            let reply = self.upstream.send(|| self.request(path)).await.map_err(|e| e.to_string())?;
            let status = reply.response.status();
            let body = Limited::new(reply.response.into_body(), ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|e| e.to_string())?.to_bytes();
            self.upstream.keep(reply.connection);
            Ok((status, body))
        };
        let limit = self.router.config.health_timeout;
        match tokio::time::timeout(limit, asking).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {} ms", limit.as_millis())),
        }
    }

    fn request(&self, path: &str) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::default());
        *request.uri_mut() = format!("{}{path}", self.address.prefix).parse().unwrap_or_default();
        if let Ok(host) = HeaderValue::from_str(&self.address.authority) {
            request.headers_mut().insert(header::HOST, host);
        }
        if let Some(key) = &self.router.replica_key {
            request.headers_mut().insert(header::AUTHORIZATION, key.clone());
        }
        request
    }
}
