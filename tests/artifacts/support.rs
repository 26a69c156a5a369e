//! Images to index, and the commands as functions.

use std::io::Write as _;
use std::sync::Mutex;

use serde_json::{Value, json};
use sociblk::config::Config;
use sociblk::node::convert::{ConvertOptions, ConvertedImage, LayoutFormat};
use sociblk::node::create::{CreateOptions, Created};
use sociblk::node::indexing::{IndexOptions, PlatformChoice};
use sociblk::node::paths::Paths;
use sociblk::node::protocol::RegistryAccess;
use sociblk::node::push::{ExistingIndex, PushEvent, PushOptions};
use sociblk::node::{convert, create, push};
use sociblk::soci::Store;
use sociblk::testkit::registry::TestRegistry;
use sociblk::units::Digest;

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A layer of some files that do not compress.
pub fn layer(seed: u64, files: &[(&str, usize)]) -> (Vec<u8>, Digest) {
    let mut tar = tar::Builder::new(Vec::new());
    let mut random = seed | 1;
    for (name, len) in files {
        let bytes: Vec<u8> = (0..*len)
            .map(|_| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random.to_le_bytes()[3]
            })
            .collect();
        let mut header = tar::Header::new_gnu();
        header.set_size(*len as u64);
        header.set_mode(0o644);
        header.set_mtime(seed);
        tar.append_data(&mut header, name, bytes.as_slice()).expect("memory");
    }
    let tar = tar.into_inner().expect("memory");
    let diff_id = Digest::of(&tar);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(1));
    gzip.write_all(&tar).expect("memory");
    (gzip.finish().expect("memory"), diff_id)
}

pub fn three_layers() -> Vec<(Vec<u8>, Digest)> {
    vec![
        layer(1, &[("bin/a", 700_000), ("bin/b", 300_000)]),
        layer(2, &[("lib/c", 2_000_000)]),
        layer(3, &[("etc/d", 10_000), ("bin/b", 500)]),
    ]
}

/// One place to work in, with a registry that has an image `app:1` of three layers.
pub struct World {
    pub registry: TestRegistry,
    pub dir: tempfile::TempDir,
    pub layers: Vec<(Vec<u8>, Digest)>,
    pub manifest: Digest,
}

impl World {
    pub fn new() -> Self {
        let (registry, layers) = (TestRegistry::start(), three_layers());
        let manifest = registry.put_image("app", "1", &borrowed(&layers));
        Self { registry, dir: tempfile::tempdir().expect("a directory"), layers, manifest }
    }

    /// Adds `multi:1`: two platforms, an attestation of the first, and something unknown.
    pub fn put_multi(&self) -> (Digest, Digest) {
        let image = |architecture: &str, layers: &[(Vec<u8>, Digest)]| {
            self.registry.put_image_with("multi", None, architecture, &borrowed(layers), &serde_json::Map::new())
        };
        let (amd, arm) = (image("amd64", &self.layers[..2]), image("arm64", &self.layers[1..]));
        let statement = self.registry.put_blob(b"a statement");
        let config = self.registry.put_blob(b"{}");
        let attestation = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config.to_string(), "size": 2},
            "layers": [{"mediaType": "application/vnd.in-toto+json", "digest": statement.to_string(), "size": 11}],
        })
        .to_string();
        let attestation_digest = self.registry.put_manifest("multi", None, OCI_MANIFEST, &attestation);
        let entry = |digest: Digest, architecture: &str| {
            let size = self.registry.manifest("multi", &digest.to_string()).expect("there").len();
            json!({"mediaType": OCI_MANIFEST, "digest": digest.to_string(), "size": size, "platform": {"architecture": architecture, "os": "linux"}})
        };
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
            entry(amd, "amd64"), entry(arm, "arm64"),
            {"mediaType": OCI_MANIFEST, "digest": attestation_digest.to_string(), "size": attestation.len(),
             "annotations": {"vnd.docker.reference.digest": amd.to_string(), "vnd.docker.reference.type": "attestation-manifest"},
             "platform": {"architecture": "unknown", "os": "unknown"}},
        ]});
        self.registry.put_manifest("multi", Some("1"), OCI_INDEX, index.to_string());
        (amd, arm)
    }

    pub fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.registry.host())
    }

    pub fn paths(&self) -> Paths {
        Paths::new(self.dir.path().join("root"))
    }

    pub fn store(&self) -> Store {
        Store::open(self.paths().root()).expect("a store")
    }

    pub fn create_options(&self, image: &str) -> CreateOptions {
        CreateOptions { image: self.image(image), push: false, index: index_options(), access: access(), login: None }
    }

    pub fn create(&self, options: &CreateOptions) -> anyhow::Result<Created> {
        create::run(&self.paths(), &Config::default(), options, &mut |_| {})
    }

    pub fn convert(
        &self,
        source: &str,
        target: &str,
        change: impl FnOnce(&mut ConvertOptions),
    ) -> anyhow::Result<ConvertedImage> {
        let mut options = ConvertOptions {
            source: source.to_owned(),
            target: target.to_owned(),
            standalone: None,
            index: index_options(),
            uploads: 3,
            access: access(),
            login: None,
        };
        change(&mut options);
        convert::run(&self.paths(), &Config::default(), &options, &mut |_| {})
    }

    pub fn standalone(&self, source: &str, target: &str, format: LayoutFormat) -> anyhow::Result<ConvertedImage> {
        self.convert(source, target, |options| options.standalone = Some(format))
    }

    /// Pushes and gives what was told.
    pub fn push(&self, image: &str, existing: ExistingIndex) -> anyhow::Result<Vec<PushEvent>> {
        let options = PushOptions {
            image: self.image(image),
            platforms: PlatformChoice::default(),
            existing,
            uploads: 3,
            access: access(),
            login: None,
        };
        let told = Mutex::new(Vec::new());
        push::run(&self.paths(), &Config::default(), &options, &|event| told.lock().expect("no panic").push(event))?;
        Ok(told.into_inner().expect("no panic"))
    }

    pub fn json(&self, repository: &str, name: &str) -> Value {
        serde_json::from_slice(&self.registry.manifest(repository, name).expect("a manifest")).expect("JSON")
    }

    /// How often all layers were read so far: their bytes that were asked for, by their lengths.
    pub fn layer_reads(&self) -> f64 {
        let whole: usize = self.layers.iter().map(|(blob, _)| blob.len()).sum();
        let asked: usize = self
            .registry
            .requests()
            .iter()
            .filter(|request| request.method == "GET")
            .filter_map(|request| {
                let of = |(blob, _): &&(Vec<u8>, Digest)| request.path.ends_with(&Digest::of(blob).to_string());
                let (blob, _) = self.layers.iter().find(of)?;
                let Some(range) = request.range.as_deref() else { return Some(blob.len()) };
                let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
                Some(last.parse::<usize>().ok()? + 1 - first.parse::<usize>().ok()?)
            })
            .sum();
        asked as f64 / whole as f64
    }
}

pub fn borrowed(layers: &[(Vec<u8>, Digest)]) -> Vec<(&[u8], Digest)> {
    layers.iter().map(|(blob, diff_id)| (blob.as_slice(), *diff_id)).collect()
}

pub fn access() -> RegistryAccess {
    // A directory without hosts.toml: the machine's own must not matter here.
    RegistryAccess { hosts_dir: Some("/nonexistent".into()), ..RegistryAccess::default() }
}

pub fn index_options() -> IndexOptions {
    IndexOptions {
        span_size_bytes: 200_000,
        min_layer_bytes: 0,
        force: false,
        optimize_xattrs: false,
        prefetch_files: Vec::new(),
        prefetch_program: false,
        platforms: PlatformChoice { named: vec!["linux/amd64".to_owned()], all: false },
    }
}

/// The error with its causes.
pub fn words(error: &anyhow::Error) -> String {
    format!("{error:#}")
}
