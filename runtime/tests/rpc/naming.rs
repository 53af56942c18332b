//! Names: a router that has a root calls blocks what the replica calls them, and no one else can.

use std::os::unix::fs::PermissionsExt;

use base::ChainHash;
use proto::v1::chain_root_request::Whose;
use proto::v1::text_assets_response::Message;
use proto::v1::{ChainRootRequest, ChainRootResponse, PurgeRequest, Retention, TextAssetsRequest};
use sha2::{Digest, Sha256};
use tonic::{Code, Status};
use tonic_types::StatusExt;
use transfer::ClusterKey;

use super::client::{Channel, soon};
use super::server::{ACME, PAGE, Server, caught_up, prompt};

fn of(namespace: &str) -> ChainRootRequest {
    ChainRootRequest { whose: Some(Whose::Namespace(namespace.into())), ..Default::default() }
}

fn by(credential: &str) -> ChainRootRequest {
    ChainRootRequest { whose: Some(Whose::Credential(credential.into())), ..Default::default() }
}

async fn root(channel: &Channel, request: ChainRootRequest) -> Result<ChainRootResponse, Status> {
    channel.cache().chain_root(request).await.map(tonic::Response::into_inner)
}

/// What a router would compute.
fn hashes(root: &ChainRootResponse, tokens: &[u32]) -> Vec<u64> {
    let mut name = ChainHash(root.root.as_slice().try_into().unwrap());
    let next = |block: &[u32]| {
        name = name.next(block);
        name.low64()
    };
    tokens.chunks_exact(PAGE as usize).map(next).collect()
}

#[tokio::test]
async fn a_root_names_the_blocks_that_events_tell_of() {
    let server = Server::start().await;
    let channel = server.operator().await;
    server.ask(ACME, 1, 4).await;
    let follower = caught_up(&server, &channel).await;
    let root = root(&channel, by("acme-key")).await.unwrap();
    assert_eq!((root.namespace.as_str(), root.generation, root.retention()), ("acme", 0, Retention::Keep));
    let named = hashes(&root, &prompt(1, 4));
    assert_eq!(named.len(), 4);
    assert!(named.iter().all(|hash| follower.set.contains_key(hash)), "{named:?}");
}

#[tokio::test]
async fn a_root_is_of_one_namespace_adapter_salt_and_generation() {
    let server = Server::start().await;
    let channel = server.operator().await;
    let first = root(&channel, of("acme")).await.unwrap();
    assert_eq!(root(&channel, by("acme-key")).await.unwrap(), first);
    let others = [
        of("zen"),
        ChainRootRequest { adapter: 1, ..of("acme") },
        ChainRootRequest { salt: b"s".to_vec(), ..of("acme") },
        ChainRootRequest { generation: Some(1), ..of("acme") },
    ];
    for other in others {
        assert_ne!(root(&channel, other.clone()).await.unwrap().root, first.root, "{other:?}");
    }
    // An operator's key is the default namespace's, as over HTTP.
    assert_eq!(root(&channel, by("root")).await.unwrap().namespace, "default");
}

#[tokio::test]
async fn a_purge_ends_a_root() {
    let server = Server::start().await;
    let channel = server.operator().await;
    let before = root(&channel, of("acme")).await.unwrap();
    channel.cache().purge(PurgeRequest { namespace: "acme".into(), ..Default::default() }).await.unwrap();
    let after = root(&channel, of("acme")).await.unwrap();
    assert_eq!((before.generation, after.generation), (0, 1));
    assert_ne!(before.root, after.root);
    let gone = root(&channel, ChainRootRequest { generation: Some(0), ..of("acme") }).await.unwrap_err();
    assert_eq!(gone.code(), Code::FailedPrecondition);
    assert_eq!(gone.get_error_details().error_info().unwrap().reason, "purged");
}

#[tokio::test]
async fn who_is_not_known_has_no_root() {
    let server = Server::start().await;
    let channel = server.operator().await;
    let code = |request| async { root(&channel, request).await.unwrap_err().code() };
    assert_eq!(code(by("guess")).await, Code::NotFound);
    assert_eq!(code(by("")).await, Code::NotFound, "a server with keys answers nobody without one");
    assert_eq!(code(of("nobody")).await, Code::InvalidArgument);
    assert_eq!(code(ChainRootRequest::default()).await, Code::InvalidArgument);
    assert_eq!(code(ChainRootRequest { salt: vec![0; 4097], ..of("acme") }).await, Code::InvalidArgument);
}

#[tokio::test]
async fn replicas_with_one_cluster_key_have_one_root_and_others_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let start = async |byte: u8| {
        let path = dir.path().join("cluster.key");
        std::fs::write(&path, [byte; 32]).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        Server::with(|setup| setup.cluster = Some(ClusterKey::load(&path).unwrap())).await
    };
    let mut roots = Vec::new();
    for byte in [1, 1, 2] {
        let server = start(byte).await;
        roots.push(root(&server.operator().await, of("acme")).await.unwrap().root);
    }
    assert_eq!(roots[0], roots[1]);
    assert_ne!(roots[0], roots[2]);
}

#[tokio::test]
async fn what_makes_tokens_of_text_is_handed_over_whole_and_only_once() {
    let server = Server::start().await;
    let channel = Channel::open(server.address).await.with_key("acme-key");
    let ask = async |known_digest: Vec<u8>| {
        let request = TextAssetsRequest { known_digest };
        let mut answers = channel.replica().text_assets(request).await.unwrap().into_inner();
        let Some(Message::Head(head)) = soon(answers.message()).await.unwrap().unwrap().message else {
            panic!("the head comes first")
        };
        let mut files = vec![Vec::new(); head.assets.len()];
        while let Some(answer) = soon(answers.message()).await.unwrap() {
            let Some(Message::Piece(piece)) = answer.message else { panic!("one head") };
            files[piece.asset as usize].extend(piece.content);
        }
        (head, files)
    };
    let (head, files) = ask(Vec::new()).await;
    assert_eq!(head.assets[0].name, "tokenizer.json");
    for (asset, file) in head.assets.iter().zip(&files) {
        assert_eq!(asset.bytes, file.len() as u64);
        assert_eq!(asset.sha256, Sha256::digest(file).to_vec());
    }
    let (again, nothing) = ask(head.digest.clone()).await;
    assert_eq!(again, head);
    assert!(nothing.iter().all(Vec::is_empty));
}
