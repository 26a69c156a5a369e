//! TLS as hosts are configured: authorities, certificates of our own, or no verification at all.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::RegistryError;

/// A certificate to show to a server, and its key.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ClientPair {
    /// PEM file with the certificate and those between it and its authority.
    pub certificate: PathBuf,
    /// PEM file with the private key; `None`: it is in `certificate`, too.
    pub key: Option<PathBuf>,
}

impl ClientPair {
    pub(super) fn files(&self) -> impl Iterator<Item = &Path> {
        std::iter::once(self.certificate.as_path()).chain(self.key.as_deref())
    }
}

/// What is special about TLS with a host. Names of files only: keys are read when a connection needs them.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct TlsSettings {
    /// PEM files with certificate authorities to trust besides the system's.
    pub ca_files: Vec<PathBuf>,
    /// Certificates to show; the server's wishes decide which.
    pub client_pairs: Vec<ClientPair>,
    /// Whether the server's certificate is left unchecked. `None`: it is checked.
    pub skip_verify: Option<bool>,
}

impl TlsSettings {
    /// Whether anything is special.
    pub(super) fn is_set(&self) -> bool {
        !self.ca_files.is_empty() || !self.client_pairs.is_empty() || self.skip_verify.is_some()
    }

    /// These, with what a host's own description adds.
    pub(super) fn and(&self, ca: Vec<PathBuf>, pairs: Vec<ClientPair>, skip_verify: Option<bool>) -> Self {
        let mut all = self.clone();
        all.ca_files.extend(ca);
        all.client_pairs.extend(pairs);
        all.skip_verify = skip_verify.or(all.skip_verify);
        all
    }

    /// The TLS library's settings; reads all files.
    ///
    /// # Errors
    /// [`RegistryError::Io`] or [`RegistryError::Tls`], naming the file.
    pub(super) fn client_config(&self, more_ca_files: &[PathBuf]) -> Result<ClientConfig, RegistryError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let keys = self.client_pairs.iter().map(|pair| certified_key(pair, &provider));
        let keys = ClientKeys(keys.collect::<Result<_, _>>()?);
        let verifier =
            Verifier::new(self.skip_verify == Some(true), more_ca_files.iter().chain(&self.ca_files), &provider)?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| RegistryError::Tls { what: "the TLS library".to_owned(), reason: error.to_string() })?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        Ok(if keys.0.is_empty() {
            builder.with_no_client_auth()
        } else {
            builder.with_client_cert_resolver(Arc::new(keys))
        })
    }
}

fn unusable(path: &Path, reason: &str) -> RegistryError {
    RegistryError::Tls { what: path.display().to_string(), reason: reason.to_owned() }
}

/// A PEM file, read again if it is needed again. Its text never reaches an error: it may hold a key.
fn read(path: &Path) -> Result<Vec<u8>, RegistryError> {
    std::fs::read(path).map_err(|source| RegistryError::Io { path: path.to_owned(), source })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, RegistryError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(unusable(path, "holds no certificates in PEM form (BEGIN CERTIFICATE)")),
    }
}

fn certified_key(pair: &ClientPair, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, RegistryError> {
    let chain = certificates(&pair.certificate)?;
    let key_file = pair.key.as_ref().unwrap_or(&pair.certificate);
    let key = PrivateKeyDer::from_pem_slice(&read(key_file)?).map_err(|_| {
        unusable(
            key_file,
            "holds no private key in PEM form without a passphrase; name its file as the second of the pair",
        )
    })?;
    let made = CertifiedKey::from_der(chain, key, provider);
    let made =
        made.map_err(|_| unusable(key_file, "the private key cannot be used, or is not that of the certificate"))?;
    Ok(Arc::new(made))
}

/// Certificates of our own; which is shown is chosen by what the server accepts.
#[derive(Debug)]
struct ClientKeys(Vec<Arc<CertifiedKey>>);

impl ResolvesClientCert for ClientKeys {
    fn resolve(&self, root_hint_subjects: &[&[u8]], sigschemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let mut fit = self.0.iter().filter(|key| key.key.choose_scheme(sigschemes).is_some());
        // An issuer's name stands in a certificate byte for byte as the server names it.
        let wanted = |key: &&Arc<CertifiedKey>| {
            let names = |name: &&[u8]| {
                !name.is_empty() && key.cert.iter().any(|der| der.windows(name.len()).any(|part| part == *name))
            };
            root_hint_subjects.iter().any(names)
        };
        // A server may accept what it does not name.
        fit.clone().find(wanted).or_else(|| fit.next()).cloned()
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}

/// Decides about a server's certificate.
#[derive(Debug)]
struct Verifier {
    /// `None`: any certificate is taken.
    chain: Option<Arc<WebPkiServerVerifier>>,
    /// Certificates that are trusted as they are: registries show self-signed ones, and their users name those as the
    /// authority. The chain's own rules refuse a certificate that is its own authority; Go's, which containerd goes by,
    /// take it.
    pinned: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn new<'a>(
        skip: bool,
        ca_files: impl Iterator<Item = &'a PathBuf>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, RegistryError> {
        let provider = Arc::clone(provider);
        if skip {
            return Ok(Self { chain: None, pinned: Vec::new(), provider });
        }
        let mut pinned = Vec::new();
        for path in ca_files {
            pinned.extend(certificates(path)?);
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(pinned.iter().cloned());
        let system = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(system.certs);
        let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let chain = builder.build().map_err(|_| RegistryError::Tls {
            what: "certificate authorities".to_owned(),
            reason: "the system has none; install the package ca-certificates, or name one (registry.ca_files, --tlscacert, `ca` in hosts.toml)"
                .to_owned(),
        })?;
        Ok(Self { chain: Some(chain), pinned, provider })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        if self.pinned.iter().any(|known| known.as_ref() == end_entity.as_ref()) {
            verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            return Ok(ServerCertVerified::assertion());
        }
        chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
