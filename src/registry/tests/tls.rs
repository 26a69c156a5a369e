//! TLS against a server with its own authority, which may want a certificate.

use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use super::chain_tests::describe;
use super::*;
use crate::registry::{ClientConfig, ClientPair, Platform, TlsSettings};
use crate::testkit::registry::TestRegistry;

/// An authority.
pub(super) struct Authority {
    pub(super) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, as PEM.
pub(super) struct Pair {
    certificate: String,
    key: String,
}

fn named(name: &str, ca: bool) -> CertificateParams {
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).expect("names");
    params.distinguished_name.push(DnType::CommonName, name);
    if ca {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    }
    params
}

pub(super) fn authority(name: &str) -> Authority {
    let key = KeyPair::generate().expect("a key");
    let params = named(name, true);
    Authority { pem: params.self_signed(&key).expect("a certificate").pem(), issuer: Issuer::new(params, key) }
}

impl Authority {
    pub(super) fn issue(&self, name: &str) -> Pair {
        let key = KeyPair::generate().expect("a key");
        let certificate = named(name, false).signed_by(&key, &self.issuer).expect("a certificate");
        Pair { certificate: certificate.pem(), key: key.serialize_pem() }
    }
}

/// A self-signed certificate of the kind that `openssl req -x509` makes: its own authority.
fn self_signed() -> Pair {
    let key = KeyPair::generate().expect("a key");
    let certificate = named("self", true).self_signed(&key).expect("a certificate");
    Pair { certificate: certificate.pem(), key: key.serialize_pem() }
}

/// A TLS server that is `pair`. Clients must show a certificate of `wanted`, if there is one.
pub(super) fn server_config(pair: &Pair, wanted: Option<&Authority>) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("versions");
    let certificate = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate");
    let builder = match wanted {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(certificate(&authority.pem)).expect("an authority");
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().expect("a verifier"))
        }
    };
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).expect("a key");
    builder.with_single_cert(vec![certificate(&pair.certificate)], key).expect("a pair")
}

/// TLS in front of a test registry.
async fn in_front_of(registry: &TestRegistry, pair: &Pair, wanted: Option<&Authority>) -> String {
    let acceptor = TlsAcceptor::from(Arc::new(server_config(pair, wanted)));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let (front, back) = (listener.local_addr().expect("an address").to_string(), registry.host().to_owned());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, back) = (acceptor.clone(), back.clone());
            tokio::spawn(async move {
                let Ok(mut front) = acceptor.accept(stream).await else { return };
                let mut back = tokio::net::TcpStream::connect(back).await.expect("the registry");
                drop(tokio::io::copy_bidirectional(&mut front, &mut back).await);
            });
        }
    });
    front
}

struct World {
    dir: tempfile::TempDir,
    registry: TestRegistry,
}

impl World {
    fn new() -> Self {
        let registry = TestRegistry::start();
        registry.put_image("a/b", "t", &[(b"x", Digest::of(b"tar"))]);
        Self { dir: tempfile::tempdir().expect("a directory"), registry }
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path
    }

    /// Resolves with a `hosts.toml` that says `text`.
    async fn resolve(&self, text: &str) -> Result<(), RegistryError> {
        resolve(describe(self.dir.path(), "reg.example", text), "reg.example").await
    }
}

async fn resolve(config: ClientConfig, registry: &str) -> Result<(), RegistryError> {
    let source = format!("{registry}/a/b:t").parse().expect("a reference");
    Client::new(config).resolve(&source, &"linux/amd64".parse::<Platform>().expect("a platform")).await.map(drop)
}

#[tokio::test]
async fn authorities_of_a_host_are_trusted_for_that_host() {
    let world = World::new();
    let ca = authority("ca");
    let front = in_front_of(&world.registry, &ca.issue("server"), None).await;
    world.file("ca.pem", &ca.pem);
    world.file("other.pem", &authority("other").pem);
    let server = format!("server = \"https://{front}\"\n");
    let error = world.resolve(&server).await.expect_err("unknown authority");
    assert!(error.to_string().contains("--tlscacert") && !error.is_transient(), "{error}");
    world.resolve(&format!("{server}ca = \"../ca.pem\"")).await.expect("trusted");
    world.resolve(&format!("{server}ca = [\"../other.pem\", \"../ca.pem\"]")).await.expect("trusted");
    world.resolve(&format!("{server}ca = \"../other.pem\"")).await.expect_err("another authority");
    world.resolve(&format!("{server}skip_verify = true")).await.expect("not looked at");
    let named = format!("[host.\"https://{front}\"]\nca = \"../ca.pem\"\n");
    world.resolve(&named).await.expect("a mirror with its authority");
}

#[tokio::test]
async fn a_certificate_that_is_its_own_authority_is_trusted_by_name() {
    let world = World::new();
    let pair = self_signed();
    let front = in_front_of(&world.registry, &pair, None).await;
    world.file("ca.pem", &pair.certificate);
    world.resolve(&format!("server = \"https://{front}\"\nca = \"../ca.pem\"")).await.expect("trusted");
    let port = front.rsplit_once(':').expect("a port").1;
    let text = format!("server = \"https://[::1]:{port}\"\nca = \"../ca.pem\"");
    world.resolve(&text).await.expect_err("not that name, or nobody there");
}

#[tokio::test]
async fn of_several_certificates_the_one_that_the_server_accepts_is_shown() {
    let world = World::new();
    let (ca, clients, others) = (authority("ca"), authority("clients"), authority("others"));
    let front = in_front_of(&world.registry, &ca.issue("server"), Some(&clients)).await;
    world.file("ca.pem", &ca.pem);
    let (good, bad) = (clients.issue("good"), others.issue("bad"));
    world.file("good.cert", &good.certificate);
    world.file("good.key", &good.key);
    world.file("both.pem", &format!("{}{}", good.key, good.certificate));
    world.file("bad.pem", &format!("{}{}", bad.certificate, bad.key));
    let server = format!("server = \"https://{front}\"\nca = \"../ca.pem\"\n");
    for (client, good) in [
        ("", false),
        ("client = \"../bad.pem\"", false),
        ("client = \"../both.pem\"", true),
        ("client = [[\"../good.cert\", \"../good.key\"]]", true),
        ("client = [[\"../both.pem\", \"\"]]", true),
        ("client = [\"../bad.pem\", \"../both.pem\"]", true),
    ] {
        let resolved = world.resolve(&format!("{server}{client}")).await;
        assert_eq!(resolved.is_ok(), good, "{client}: {resolved:?}");
    }
    for (client, want) in [
        ("client = \"../good.cert\"", "good.cert: holds no private key"),
        ("client = [[\"../good.cert\", \"../bad.pem\"]]", "not that of the certificate"),
        ("client = \"../ca.missing\"", "ca.missing"),
        ("client = \"../good.key\"", "good.key: holds no certificates"),
    ] {
        let error = world.resolve(&format!("{server}{client}")).await.expect_err(client).to_string();
        assert!(error.contains(want), "{client}: {error}");
    }
}

#[tokio::test]
async fn what_the_command_says_about_tls_is_for_every_host() {
    let world = World::new();
    let (ca, clients) = (authority("ca"), authority("clients"));
    let front = in_front_of(&world.registry, &ca.issue("server"), Some(&clients)).await;
    let pair = clients.issue("client");
    let pair = ClientPair {
        certificate: world.file("client.cert", &pair.certificate),
        key: Some(world.file("client.key", &pair.key)),
    };
    let with = |ca_files: Vec<PathBuf>, skip: bool| {
        let tls = TlsSettings { ca_files, client_pairs: vec![pair.clone()], skip_verify: skip.then_some(true) };
        ClientConfig { tls, ..describe(world.dir.path(), "none", "") }
    };
    // A loopback host is spoken to over TLS when TLS is what the command is about.
    resolve(with(vec![world.file("ca.pem", &ca.pem)], false), &front).await.expect("trusted");
    resolve(with(Vec::new(), true), &front).await.expect("not looked at");
    resolve(with(Vec::new(), false), &front).await.expect_err("unknown authority");
}

#[tokio::test]
async fn a_host_named_with_plain_http_but_settings_for_tls_is_tried_with_tls_first() {
    let world = World::new();
    let plain = world.registry.host().to_owned();
    world.resolve(&format!("server = \"http://{plain}\"\nskip_verify = true")).await.expect("over plain HTTP");
    let front = in_front_of(&world.registry, &self_signed(), None).await;
    world.resolve(&format!("server = \"http://{front}\"\nskip_verify = true")).await.expect("over TLS");
}

#[tokio::test]
async fn certificates_in_dockers_layout_are_used() {
    let world = World::new();
    let (ca, clients) = (authority("ca"), authority("clients"));
    let front = in_front_of(&world.registry, &ca.issue("server"), Some(&clients)).await;
    let pair = clients.issue("client");
    let namespace = front.replace(':', "_") + "_";
    let config = describe(world.dir.path(), &namespace, "");
    let at = |name: &str| format!("{namespace}/{name}");
    world.file(&at("ca.crt"), &ca.pem);
    world.file(&at("client.cert"), &pair.certificate);
    world.file(&at("client.key"), &pair.key);
    resolve(config, &front).await.expect("trusted, and trusting");
}
