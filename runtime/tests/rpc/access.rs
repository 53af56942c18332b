//! Who may call what, and what a wrong call is told.

use expect_test::expect;
use proto::v1::{
    CacheStatsRequest, ChainRootRequest, DrainRequest, KvEventsRequest, LoadRequest, ModelInfoRequest,
    PurgeRequest, TextAssetsRequest, chain_root_request::Whose,
};
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_types::StatusExt;

use super::client::Channel;
use super::server::Server;

/// How each operator's method answers.
async fn operators_methods(channel: &Channel) -> Vec<Code> {
    let order = PurgeRequest { namespace: "acme".into(), ..PurgeRequest::default() };
    let root = ChainRootRequest { whose: Some(Whose::Namespace("acme".into())), ..Default::default() };
    let code = |failed: Option<Status>| failed.map_or(Code::Ok, |status| status.code());
    vec![
        code(channel.cache().kv_events(KvEventsRequest::default()).await.err()),
        code(channel.cache().purge(order).await.err()),
        code(channel.cache().cache_stats(CacheStatsRequest {}).await.err()),
        code(channel.cache().chain_root(root).await.err()),
        code(channel.replica().load(LoadRequest::default()).await.err()),
        code(channel.replica().drain(DrainRequest::default()).await.err()),
    ]
}

#[tokio::test]
async fn tenants_may_ask_for_the_model_and_operators_for_the_rest() {
    let server = Server::start().await;
    let open = Channel::open(server.address).await;
    let (none, wrong) = (open.clone(), open.with_key("wrong"));
    let (tenant, operator) = (open.with_key("acme-key"), open.with_key("root"));
    assert_eq!(operators_methods(&none).await, [Code::Unauthenticated; 6]);
    assert_eq!(operators_methods(&wrong).await, [Code::Unauthenticated; 6]);
    assert_eq!(operators_methods(&tenant).await, [Code::PermissionDenied; 6]);
    let ask = |channel: Channel| async move {
        channel.replica().model_info(ModelInfoRequest {}).await.map_err(|status| status.code())
    };
    assert_eq!(ask(none.clone()).await.err(), Some(Code::Unauthenticated));
    let assets = |channel: Channel| async move {
        channel.replica().text_assets(TextAssetsRequest::default()).await.map(|_| ()).map_err(|s| s.code())
    };
    assert_eq!((assets(none).await, assets(tenant.clone()).await), (Err(Code::Unauthenticated), Ok(())));
    let info = ask(tenant).await.unwrap().into_inner();
    assert_eq!((info.models, info.page_tokens, info.version), (vec!["sim".to_owned()], 16, "1.2.3".into()));
    assert_eq!((info.model_digest.len(), info.signing_key.len()), (32, 32));
    assert_eq!(operators_methods(&operator).await, [Code::Ok; 6]);
}

#[tokio::test]
async fn without_keys_everyone_is_an_operator_as_over_http() {
    let server = Server::with(|setup| {
        setup.config.admin_keys.clear();
        setup.config.tenants.clear();
    })
    .await;
    let anyone = Channel::open(server.address).await;
    assert_eq!(operators_methods(&anyone).await, [Code::Ok; 6]);
}

/// Without admin keys a key for answers operates the server; other tenants' prompts are not its to read.
#[tokio::test]
async fn tokens_of_tenants_need_an_admin_key() {
    let tokens = KvEventsRequest { with_token_ids: true, ..Default::default() };
    let server = Server::with(|setup| {
        setup.config.admin_keys.clear();
        setup.config.api_keys = vec!["house".into()];
    })
    .await;
    let house = Channel::open(server.address).await.with_key("house");
    assert_eq!(operators_methods(&house).await, [Code::Ok; 6]);
    let refused = house.cache().kv_events(tokens.clone()).await.err().unwrap();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("--admin-key"), "{}", refused.message());
    let server = Server::start().await;
    assert!(server.operator().await.cache().kv_events(tokens).await.is_ok());
}

#[tokio::test]
async fn a_wrong_argument_is_refused_by_name() {
    let server = Server::start().await;
    let channel = server.operator().await;
    let events = |request| async { channel.cache().kv_events(request).await.err().unwrap() };
    let purge = |request| async { channel.cache().purge(request).await.err().unwrap() };
    let order = PurgeRequest { namespace: "acme".into(), ..PurgeRequest::default() };
    let unknown = KvEventsRequest { namespaces: vec!["acme".into(), "x".into()], ..Default::default() };
    let all = [
        events(unknown).await,
        events(KvEventsRequest { snapshot: 9, ..Default::default() }).await,
        purge(PurgeRequest::default()).await,
        purge(PurgeRequest { namespace: "nobody".into(), ..Default::default() }).await,
        purge(PurgeRequest { running: 9, ..order.clone() }).await,
        purge(PurgeRequest { timeout_ms: Some(3_600_001), ..order.clone() }).await,
        channel.replica().load(LoadRequest { interval_ms: Some(9) }).await.err().unwrap(),
        channel.replica().drain(DrainRequest { wait_ms: Some(3_600_001) }).await.err().unwrap(),
        channel.with_timeout("soon").cache().purge(order).await.err().unwrap(),
    ];
    let said = all.map(|status| {
        let details = status.get_error_details();
        let field = &details.bad_request().unwrap().field_violations[0].field;
        format!("{:?} {field}: {}\n", status.code(), status.message())
    });
    expect![[r#"
        InvalidArgument namespaces[1]: no namespace is called "x"
        InvalidArgument snapshot: `snapshot` has no value 9
        InvalidArgument namespace: `namespace` is missing
        InvalidArgument namespace: no namespace is called "nobody"
        InvalidArgument running: `running` has no value 9
        InvalidArgument timeout_ms: `timeout_ms` must be an integer from 0 to 3600000, got 3600001
        InvalidArgument interval_ms: `interval_ms` must be an integer from 10 to 60000, got 9
        InvalidArgument wait_ms: `wait_ms` must be an integer from 0 to 3600000, got 3600001
        InvalidArgument grpc-timeout: `grpc-timeout` must be up to 8 digits and one of H M S m u n
    "#]]
    .assert_eq(&said.concat());
}

#[tokio::test]
async fn a_request_larger_than_any_that_makes_sense_is_refused() {
    let server = Server::start().await;
    let channel = server.operator().await;
    let request = KvEventsRequest { namespaces: vec!["x".repeat(70_000)], ..Default::default() };
    let refused = channel.cache().kv_events(request).await.err().unwrap();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(refused.get_error_details().error_info().unwrap().reason, "request_too_large");
}

#[tokio::test]
async fn health_asks_for_no_key_and_reflection_for_any() {
    let server = Server::start().await;
    let open = Channel::open(server.address).await;
    for service in ["", "quire.v1.Cache", "quire.v1.Replica"] {
        let request = HealthCheckRequest { service: service.into() };
        assert_eq!(open.health().check(request).await.unwrap().into_inner().status, 1, "{service}");
    }
    let request = HealthCheckRequest { service: "quire.v1.Nothing".into() };
    assert_eq!(open.health().check(request).await.err().unwrap().code(), Code::NotFound);
    assert_eq!(services(&open).await.err().unwrap().code(), Code::Unauthenticated);
    expect![[r#"
        [
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "quire.v1.Cache",
            "quire.v1.Replica",
        ]
    "#]]
    .assert_debug_eq(&services(&open.with_key("acme-key")).await.unwrap());
}

async fn services(channel: &Channel) -> Result<Vec<String>, Status> {
    let message_request = Some(MessageRequest::ListServices(String::new()));
    let request = ServerReflectionRequest { host: String::new(), message_request };
    let origin = tonic::codegen::http::Uri::from_static("http://test");
    let mut client = ServerReflectionClient::with_origin(channel.clone(), origin);
    let mut answers = client.server_reflection_info(tokio_stream::once(request)).await?.into_inner();
    let answer = answers.message().await?.unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(list) = answer else { panic!("{answer:?}") };
    let mut names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
    names.sort();
    Ok(names)
}

#[tokio::test]
async fn a_method_that_is_not_there_is_said_not_to_be() {
    let server = Server::start().await;
    let channel = server.operator().await;
    let mut client =
        tonic::client::Grpc::with_origin(channel, tonic::codegen::http::Uri::from_static("http://test"));
    client.ready().await.unwrap();
    let path = tonic::codegen::http::uri::PathAndQuery::from_static("/quire.v1.Generate/Generate");
    let codec = tonic_prost::ProstCodec::<ModelInfoRequest, ModelInfoRequest>::default();
    let answer = client.unary(tonic::Request::new(ModelInfoRequest {}), path, codec).await;
    assert_eq!(answer.err().unwrap().code(), Code::Unimplemented);
}
