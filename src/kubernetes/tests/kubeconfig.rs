//! kubeconfig files, and TLS as they describe it.

use std::sync::Arc;

use base64::Engine as _;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use super::*;

fn error(text: &str) -> String {
    let dir = tempfile::tempdir().expect("a directory");
    let path = write(dir.path(), "config", text);
    match Source::File(path).access() {
        Err(error) => error.to_string(),
        Ok(_) => panic!("taken: {text}"),
    }
}

fn with_user(user: &str) -> String {
    format!(
        "current-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
         clusters: [{{name: k, cluster: {{server: 'https://k:6443'}}}}]\nusers:\n- name: u\n  user: {user}\n"
    )
}

#[test]
fn what_is_wrong_with_a_file_is_said_without_its_text() {
    for (text, want) in [
        ("", "current-context"),
        ("current-context: c", "no context \"c\""),
        ("users:\n- hunter2: [", "at line"),
        ("users: hunter2", "no kubeconfig"),
        ("current-context: c\ncontexts: [{name: c, context: {cluster: k}}]", "no cluster \"k\""),
        (&with_user("{}").replace("user: u", "user: v"), "no user \"v\""),
        (&with_user("{}").replace("https://k:6443", "k"), "no URL"),
        (&with_user("{}").replace("https", "ftp"), "neither https"),
        (&with_user("{}").replace("server:", "tls-server-name: x, server:"), "tls-server-name"),
        (&with_user("{}").replace("server:", "certificate-authority: nowhere.crt, server:"), "nowhere.crt"),
        (&with_user("{}").replace("server:", "certificate-authority-data: '!', server:"), "no base64"),
        (&with_user("{}").replace("server:", "proxy-url: '::', server:"), "proxy-url"),
        (&with_user("{tokenFile: nowhere}"), "nowhere"),
        (&with_user("{client-key-data: aHVudGVyMg==}"), "no client-certificate"),
        (&with_user("{exec: {command: aws, args: [hunter2]}}"), "exec"),
        (&with_user("{auth-provider: {name: gcp}}"), "auth-provider"),
        (&with_user("{username: u, password: hunter2}"), "by a password"),
    ] {
        let said = error(text);
        assert!(said.contains(want) && said.contains("config") || said.contains("nowhere"), "{text}: {said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
    let missing = Source::File("/nonexistent/config".into()).access().err().expect("missing").to_string();
    assert!(missing.contains("/nonexistent/config"), "{missing}");
}

#[test]
fn files_are_read_as_kubectl_reads_them() {
    let dir = tempfile::tempdir().expect("a directory");
    write(dir.path(), "t", " from-file \n");
    let read = |text: &str| Source::File(write(dir.path(), "config", text)).access().expect("good");
    assert_eq!(read(&with_user("{token: abc}")).token.as_deref(), Some("abc"));
    assert_eq!(read(&with_user("{token: abc, tokenFile: t}")).token.as_deref(), Some("from-file"));
    let nobody = read(&with_user("{}"));
    assert!(nobody.token.is_none() && nobody.identity.is_none() && nobody.authorities.is_none() && !nobody.skip_verify);
    // JSON is YAML.
    let json = r#"{"current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "k"}}],
        "clusters": [{"name": "k", "cluster": {"server": "http://k", "insecure-skip-tls-verify": true}}], "extensions": []}"#;
    let access = read(json);
    assert!(access.skip_verify && access.server.as_str() == "http://k/");
    let found = Source::find("/etc/k").expect("named");
    assert_eq!(found, Source::File("/etc/k".into()));
}

#[test]
fn pods_have_a_service_account() {
    let dir = tempfile::tempdir().expect("a directory");
    let source = Source::ServiceAccount { server: "10.0.0.1:443".into(), dir: dir.path().to_owned() };
    assert!(source.access().is_err(), "nothing is there");
    write(dir.path(), "ca.crt", "PEM");
    write(dir.path(), "token", "\n");
    assert!(source.access().err().expect("empty").to_string().contains("no token"));
    write(dir.path(), "token", "abc\n");
    let access = source.access().expect("an account");
    assert_eq!((access.server.as_str(), access.token.as_deref()), ("https://10.0.0.1/", Some("abc")));
    assert_eq!(access.authorities.as_deref(), Some(&b"PEM"[..]));
}

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority")
}

fn issue(authority: &Authority, name: &str) -> (rcgen::Certificate, KeyPair) {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
    (params.signed_by(&key, authority).expect("a certificate"), key)
}

fn acceptor(server: &Authority, clients: &Authority) -> TlsAcceptor {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let (certificate, key) = issue(server, "127.0.0.1");
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
    let mut roots = RootCertStore::empty();
    roots.add(clients.der().clone()).expect("a root");
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .expect("a verifier");
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate.der().clone()], key)
        .expect("a pair");
    TlsAcceptor::from(Arc::new(config))
}

#[tokio::test]
async fn server_and_client_show_certificates() {
    let (servers, clients, strangers) = (authority("servers"), authority("clients"), authority("strangers"));
    let server = Server::start_tls(acceptor(&servers, &clients)).await;
    server.put(secret("a", "a.io", "a"));
    let dir = tempfile::tempdir().expect("a directory");
    let encode = |text: String| base64::engine::general_purpose::STANDARD.encode(text);
    let file = |ca: &Authority, client: &Authority| {
        let (certificate, key) = issue(client, "node");
        write(dir.path(), "client.pem", &format!("{}{}", certificate.pem(), key.serialize_pem()));
        format!(
            "current-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
             clusters:\n- name: k\n  cluster:\n    server: https://{}\n    certificate-authority-data: {}\n\
             users:\n- name: u\n  user: {{client-certificate: client.pem, client-key: client.pem}}\n",
            server.address,
            encode(ca.pem())
        )
    };
    // Who is not trusted, on either side, gets nothing; what is mended counts at once.
    for (ca, client) in [(&strangers, &clients), (&servers, &strangers)] {
        let access = Source::File(write(dir.path(), "kubeconfig", &file(ca, client))).access().expect("a file");
        let refused = super::super::api::Api::new(access).expect("a client").list().await.err().expect("refused");
        assert!(matches!(refused, KubernetesError::Transport { .. }), "{refused}");
    }
    let (secrets, _watching) = begin(Source::File(dir.path().join("kubeconfig")));
    write(dir.path(), "kubeconfig", &file(&servers, &clients));
    until("listed", || secrets.len() == 1).await;
    // Unchecked, when that is asked for.
    let unchecked = file(&strangers, &clients);
    let unchecked: String = unchecked.lines().filter(|line| !line.contains("certificate-authority-data")).fold(
        String::new(),
        |text, line| {
            text + line + "\n" + if line.contains("server:") { "    insecure-skip-tls-verify: true\n" } else { "" }
        },
    );
    let access = Source::File(write(dir.path(), "kubeconfig", &unchecked)).access().expect("a file");
    let listed = super::super::api::Api::new(access).expect("a client").list().await.expect("listed");
    assert_eq!(listed.0.len(), 1);
}
