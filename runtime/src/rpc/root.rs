//! `Cache.ChainRoot`: where the names of a user's blocks begin, for routers that name prompts themselves.
//!
//! The root and not the namespace's key: the key would name every generation to come, also after a purge, and
//! whoever had it once would have it for good.

use base::{AdapterId, Generation, NamespaceId};
use proto::v1::chain_root_request::Whose;
use proto::v1::{self, ChainRootRequest, ChainRootResponse};
use tonic::{Code, Status};

use super::status::status;
use super::wire::Names;
use crate::api::App;
use crate::api::error::ApiError;
use crate::engine::{NoRoot, RootOf};
use crate::request::Tenant;
use crate::storage::Retention;

const SALT_BYTES_MAX: usize = 4096;

pub(super) fn answer(app: &App, request: ChainRootRequest) -> Result<ChainRootResponse, Status> {
    let engine = &app.replica()?.engine;
    let names = Names::new(engine.names());
    if request.salt.len() > SALT_BYTES_MAX {
        let message = format!("`salt` has {} bytes, at most {SALT_BYTES_MAX} are taken", request.salt.len());
        return Err(ApiError::invalid("salt", message).into());
    }
    let (namespace, told) = whose(app, &names, request.whose)?;
    let root = engine.root(RootOf {
        namespace,
        generation: request.generation.map(Generation),
        adapter: AdapterId(request.adapter),
        salt: Tenant::salt_of(&request.salt),
    });
    let root = root.map_err(|why| refusal(why, &names.of(namespace)))?;
    Ok(ChainRootResponse {
        namespace: names.of(namespace),
        generation: root.generation.0,
        root: root.hash.0.to_vec(),
        retention: retention(told.unwrap_or(root.retention)).into(),
    })
}

/// The namespace, and the retention of whoever has the credential, if it was one.
fn whose(app: &App, names: &Names, asked: Option<Whose>) -> Result<(NamespaceId, Option<Retention>), Status> {
    match asked {
        None => {
            let message = "one of `namespace` and `credential` must be set";
            Err(ApiError::invalid("whose", message).into())
        }
        Some(Whose::Namespace(name)) => match names.find(std::slice::from_ref(&name)).as_deref() {
            Ok([id]) => Ok((*id, None)),
            _ => {
                let message = format!("no namespace is called {name:?}");
                Err(ApiError::invalid("namespace", message).into())
            }
        },
        Some(Whose::Credential(credential)) => {
            let caller = app.whose(Some(credential.as_str()).filter(|given| !given.is_empty()));
            let unknown = |_| status(Code::NotFound, "unknown_credential", "nobody has this credential");
            caller.map(|caller| (caller.namespace, Some(caller.retention))).map_err(unknown)
        }
    }
}

fn refusal(why: NoRoot, namespace: &str) -> Status {
    match why {
        NoRoot::UnknownNamespace => {
            ApiError::internal(format!("namespace {namespace:?} has no naming key")).into()
        }
        NoRoot::Purged { floor } => {
            let message = format!("namespace {namespace:?} is purged up to before generation {floor}");
            status(Code::FailedPrecondition, "purged", &message)
        }
    }
}

fn retention(of: Retention) -> v1::Retention {
    match of {
        Retention::Keep => v1::Retention::Keep,
        Retention::Nothing => v1::Retention::Nothing,
    }
}
