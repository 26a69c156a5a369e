//! Writing an OCI layout, as a directory or as a tar of one. What lists the image comes last: a layout that is not
//! finished shows nothing.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use futures_util::StreamExt;
use serde_json::{Value, json};

use super::document::media_type;
use super::layout::{INDEX, REF_NAME, blob_name};
use super::{BlobSource, ImageSource, LayoutName, RegistryError, archive};
use crate::units::{BlobOffset, BlobRange, Digest, DigestHasher};

const MARKER: (&str, &[u8]) = ("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);

/// A layout that is being written. Dropped before [`LayoutWriter::finish`], it leaves no image behind.
pub struct LayoutWriter {
    tag: Option<String>,
    /// What is listed beside the image.
    artifacts: Vec<Value>,
    written: HashSet<Digest>,
    target: Target,
}

enum Target {
    Dir {
        dir: PathBuf,
        /// Made here, so that it is removed when nothing comes of it.
        made: bool,
    },
    Archive {
        path: PathBuf,
        temporary: PathBuf,
        /// `None` when it is finished.
        writer: Option<archive::Writer<BufWriter<File>>>,
    },
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> RegistryError {
    let path = path.to_owned();
    move |source| RegistryError::Io { path, source }
}

impl LayoutWriter {
    /// Begins the layout that `target` names. An archive is replaced when the new one is complete; a layout directory
    /// keeps its other images.
    ///
    /// # Errors
    /// [`RegistryError::Document`] for a target that is no layout, or a directory that holds something else;
    /// [`RegistryError::Io`].
    pub fn create(target: &ImageSource) -> Result<Self, RegistryError> {
        let bad = |reason: &str| RegistryError::Document { what: target.to_string(), reason: reason.to_owned() };
        let (name, target) = match target {
            ImageSource::Layout { dir, name } => {
                let made = !dir.exists();
                fs::create_dir_all(dir).map_err(failed(dir))?;
                let empty = fs::read_dir(dir).map_err(failed(dir))?.next().is_none();
                if !empty && !dir.join(MARKER.0).exists() {
                    return Err(bad(
                        "the directory holds something else than an OCI layout; name an empty or a new one",
                    ));
                }
                let blobs = dir.join("blobs/sha256");
                fs::create_dir_all(&blobs).map_err(failed(&blobs))?;
                (name, Target::Dir { dir: dir.clone(), made })
            }
            ImageSource::Archive { file, name } => {
                let mut hidden = file.file_name().ok_or_else(|| bad("it names no file"))?.to_owned();
                hidden.push(format!(".{}.partial", std::process::id()));
                let temporary = file.with_file_name(hidden);
                let out = File::create(&temporary).map_err(failed(&temporary))?;
                let mut writer = archive::Writer::new(BufWriter::with_capacity(256 << 10, out));
                ["blobs/", "blobs/sha256/"]
                    .into_iter()
                    .try_for_each(|dir| writer.begin(dir, 0))
                    .map_err(failed(file))?;
                (name, Target::Archive { path: file.clone(), temporary, writer: Some(writer) })
            }
            ImageSource::Registry(_) | ImageSource::Containerd(_) | ImageSource::LayerFile(_) => {
                return Err(bad("it is no OCI layout"));
            }
        };
        let tag = match name {
            LayoutName::Only => None,
            LayoutName::Tag(tag) => Some(tag.clone()),
            LayoutName::Digest(_) => return Err(bad("a destination is named by a tag, not by a digest")),
        };
        Ok(Self { tag, artifacts: Vec::new(), written: HashSet::new(), target })
    }

    /// Copies a blob, checking its digest.
    ///
    /// # Errors
    /// What the source says; [`RegistryError::WrongDigest`], [`RegistryError::Truncated`]; [`RegistryError::Io`].
    pub async fn copy(&mut self, source: &dyn BlobSource) -> Result<(), RegistryError> {
        let (digest, size) = (source.digest(), source.size());
        if !self.begin(digest, size.get())? {
            return Ok(());
        }
        let mut hasher = DigestHasher::new();
        let mut got_bytes = 0_u64;
        {
            let Some(range) = BlobRange::new(BlobOffset::ZERO, size) else { return Ok(()) };
            let mut out = Out::new(&mut self.target, &digest)?;
            let mut stream = source.open(range).await?;
            while let Some(piece) = stream.bytes.next().await {
                let piece = piece?;
                got_bytes += piece.len() as u64;
                hasher.update(&piece);
                if got_bytes > size.get() {
                    break;
                }
                // Pieces are small and go to the page cache.
                out.write(&piece)?;
            }
            if got_bytes != size.get() {
                let (url, expected_bytes) = (source.describe(), size.get());
                return Err(RegistryError::Truncated { url, got_bytes, expected_bytes });
            }
            let actual = hasher.finish();
            if actual != digest {
                return Err(RegistryError::WrongDigest { what: source.describe(), expected: digest, actual });
            }
            out.end(size.get())?;
        }
        self.written.insert(digest);
        Ok(())
    }

    /// Adds a blob or manifest.
    ///
    /// # Errors
    /// [`RegistryError::Io`].
    pub fn put(&mut self, bytes: &[u8]) -> Result<Digest, RegistryError> {
        let digest = Digest::of(bytes);
        let size_bytes = bytes.len() as u64;
        if self.begin(digest, size_bytes)? {
            let mut out = Out::new(&mut self.target, &digest)?;
            out.write(bytes)?;
            out.end(size_bytes)?;
            drop(out);
            self.written.insert(digest);
        }
        Ok(digest)
    }

    /// Lists a manifest that was put, one that names its image by its subject, beside the image.
    pub fn list_artifact(&mut self, artifact_type: &str, digest: Digest, size_bytes: u64) {
        self.artifacts.push(json!({
            "mediaType": media_type::OCI_MANIFEST, "digest": digest.to_string(), "size": size_bytes,
            "artifactType": artifact_type,
        }));
    }

    /// Whether the blob must be written. In an archive its header then has been.
    fn begin(&mut self, digest: Digest, size_bytes: u64) -> Result<bool, RegistryError> {
        if self.written.contains(&digest) {
            return Ok(false);
        }
        match &mut self.target {
            Target::Dir { .. } => Ok(true),
            Target::Archive { path, writer: Some(writer), .. } => {
                writer.begin(&blob_name(&digest), size_bytes).map_err(failed(path))?;
                Ok(true)
            }
            Target::Archive { .. } => Ok(false),
        }
    }

    /// Lists the image, durably.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn finish(mut self, media_type_of_image: &str, digest: Digest, size_bytes: u64) -> Result<(), RegistryError> {
        let mut entry = json!({"mediaType": media_type_of_image, "digest": digest.to_string(), "size": size_bytes});
        if let (Some(tag), Some(entry)) = (&self.tag, entry.as_object_mut()) {
            entry.insert("annotations".to_owned(), json!({REF_NAME: tag}));
        }
        let mut listed = vec![entry];
        listed.append(&mut self.artifacts);
        match &mut self.target {
            Target::Dir { dir, made } => {
                let index = dir.join(INDEX);
                let mut others = others(&index, self.tag.as_deref())?;
                others.retain(|other| !listed.iter().any(|new| new.get("digest") == other.get("digest")));
                let listed: Vec<Value> = others.into_iter().chain(listed).collect();
                replace(&dir.join(MARKER.0), MARKER.1)?;
                replace(&index, index_of(&listed).as_bytes())?;
                *made = false;
                File::open(&*dir).and_then(|dir| dir.sync_all()).map_err(failed(dir))
            }
            Target::Archive { path, temporary, writer } => {
                let Some(mut writer) = writer.take() else { return Ok(()) };
                let io = failed(temporary);
                let done = (|| {
                    writer.member(INDEX, index_of(&listed).as_bytes())?;
                    writer.member(MARKER.0, MARKER.1)?;
                    let file = writer.finish()?.into_inner().map_err(std::io::IntoInnerError::into_error)?;
                    file.sync_all()?;
                    fs::rename(&*temporary, &*path)
                })();
                if done.is_err() {
                    // The error tells; what stays is named `.partial`.
                    drop(fs::remove_file(&*temporary));
                }
                done.map_err(io)
            }
        }
    }
}

impl Drop for LayoutWriter {
    fn drop(&mut self) {
        // Nobody is left to hear of an error here.
        match &mut self.target {
            Target::Dir { dir, made: true } => drop(fs::remove_dir_all(dir)),
            Target::Dir { .. } => {}
            Target::Archive { temporary, writer, .. } => {
                if writer.take().is_some() {
                    drop(fs::remove_file(temporary));
                }
            }
        }
    }
}

/// Where the bytes of one blob go.
enum Out<'a> {
    File { file: File, temporary: PathBuf, path: PathBuf },
    Member { path: &'a Path, writer: &'a mut archive::Writer<BufWriter<File>> },
    Nowhere,
}

impl<'a> Out<'a> {
    fn new(target: &'a mut Target, digest: &Digest) -> Result<Self, RegistryError> {
        Ok(match target {
            Target::Dir { dir, .. } => {
                let path = dir.join(blob_name(digest));
                let temporary = path.with_extension(format!("{}.partial", std::process::id()));
                Self::File { file: File::create(&temporary).map_err(failed(&temporary))?, temporary, path }
            }
            Target::Archive { path, writer: Some(writer), .. } => Self::Member { path, writer },
            Target::Archive { .. } => Self::Nowhere,
        })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), RegistryError> {
        match self {
            Self::File { file, temporary, .. } => file.write_all(bytes).map_err(failed(temporary)),
            Self::Member { path, writer } => writer.out().write_all(bytes).map_err(failed(path)),
            Self::Nowhere => Ok(()),
        }
    }

    fn end(&mut self, size_bytes: u64) -> Result<(), RegistryError> {
        match self {
            Self::File { file, temporary, path } => {
                file.sync_all().map_err(failed(temporary))?;
                fs::rename(&*temporary, &*path).map_err(failed(path))
            }
            Self::Member { path, writer } => writer.end(size_bytes).map_err(failed(path)),
            Self::Nowhere => Ok(()),
        }
    }
}

impl Drop for Out<'_> {
    fn drop(&mut self) {
        if let Self::File { temporary, .. } = self {
            // After a rename there is none.
            drop(fs::remove_file(temporary));
        }
    }
}

fn index_of(entries: &[Value]) -> String {
    json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": entries}).to_string()
}

/// What an `index.json` lists besides the image that is replaced: the one with the same tag, or all when there is no tag.
fn others(index: &Path, tag: Option<&str>) -> Result<Vec<Value>, RegistryError> {
    let bytes = match fs::read(index) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(index)(error)),
    };
    let bad = |reason: String| RegistryError::Document { what: index.display().to_string(), reason };
    let document: Value = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
    let mut entries = document.get("manifests").and_then(Value::as_array).cloned().unwrap_or_default();
    let tag_of = |entry: &Value| entry.get("annotations")?.get(REF_NAME)?.as_str().map(str::to_owned);
    entries.retain(|entry| tag.is_some() && tag_of(entry).as_deref() != tag);
    Ok(entries)
}

fn replace(path: &Path, bytes: &[u8]) -> Result<(), RegistryError> {
    let temporary = path.with_extension(format!("{}.partial", std::process::id()));
    let mut file = File::create(&temporary).map_err(failed(&temporary))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed(&temporary))?;
    fs::rename(&temporary, path).map_err(failed(path))
}
