//! What starts read first. Every mount, and every image that containerd shows, has a recording from its beginning on; what
//! it costs is a slot for each span, which the layer has anyway. It becomes a load order when somebody asks for it, or by
//! itself where the settings say so.

use std::sync::Arc;

use anyhow::{Context, bail};

use super::excerpt::make;
use super::recording::{DEFAULT_LABEL, Key, Recorded, Recording};
use crate::fill::read_clock_us;
use crate::node::protocol::{RecordAction, RecordOrder, RecordReport};
use crate::node::served::Served;
use crate::node::{LayerNames, Node, uses};
use crate::order::{AUTOMATIC_LABEL, check_label};
use crate::registry::ImageRef;
use crate::units::Digest;

impl Node {
    /// Begins to record a mount, or goes on with an image of which one more layer is shown.
    pub(in crate::node) fn record(self: &Arc<Self>, served: &Served, key: &Key, of: Recorded, names: &LayerNames) {
        for layer in names.iter().filter_map(|name| served.layers.get(name)) {
            self.orders.recordings.collect(layer.layer.fill());
        }
        let mut recordings = self.orders.recordings.lock();
        let known = recordings.contains_key(key);
        let recording = recordings.entry(key.clone()).or_insert_with(|| Recording::new(of));
        let begun_us = if known { read_clock_us() } else { recording.since_us };
        for (name, count) in uses(names) {
            let Some(layer) = served.layers.get(name) else { continue };
            recording.fresh &= layer.users == count;
            layer.layer.fill().begin_reads(begun_us);
        }
        for layer in names.iter().filter_map(|name| served.layers.get(name)) {
            recording.add(layer.record.digest, layer.record.ztoc, layer.layer.fill());
        }
        let since_us = recording.since_us;
        if let (false, Some(after)) = (known, self.orders.keeps_after()) {
            let (node, key) = (Arc::downgrade(self), key.clone());
            tokio::spawn(async move {
                tokio::time::sleep(after).await;
                let Some(node) = node.upgrade() else { return };
                // The place may be another mount's by now, or a user may have begun anew.
                if node.orders.recordings.lock().get(&key).is_some_and(|recording| recording.since_us == since_us) {
                    node.keep_order(&key).await;
                }
            });
        }
    }

    /// Keeps what a start read, where the settings want it. One that could not see all does not replace a longer one.
    async fn keep_order(&self, key: &Key) {
        if self.orders.keeps_after().is_none() {
            return;
        }
        let Some((order, fresh)) = self.orders.recordings.order(key, Some(AUTOMATIC_LABEL)) else { return };
        if order.reads.is_empty() {
            return;
        }
        let shelf = self.orders.shelf.clone();
        let kept = tokio::task::spawn_blocking(move || {
            let before = shelf.read(&order.image, AUTOMATIC_LABEL).map_or(0, |before| before.bytes);
            if fresh || order.bytes >= before { shelf.put(&order, None).map(drop) } else { Ok(()) }
        });
        match kept.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "a load order cannot be kept"),
            Err(error) => tracing::error!(%error, "keeping a load order"),
        }
    }

    /// Ends the recording of a mount whose layers are about to go, or have gone.
    pub(in crate::node) async fn end_recording(&self, key: &Key) {
        self.keep_order(key).await;
        self.orders.recordings.forget(key);
    }

    /// Does what `sociblk record` asks.
    ///
    /// # Errors
    /// When nothing of that name is shown, nothing was read, or the order cannot be kept.
    pub(in crate::node) async fn record_order(self: &Arc<Self>, asked: RecordOrder) -> anyhow::Result<RecordReport> {
        let RecordOrder { action, target, label, entrypoint, excerpt } = asked;
        label.as_deref().map(check_label).transpose()?;
        let key = self.recording_of(&target).await?;
        if action == RecordAction::Start {
            let mut recordings = self.orders.recordings.lock();
            // Others that share layers with it keep what they have.
            recordings.values_mut().for_each(Recording::collect);
            let recording = recordings.get_mut(&key).context("a recording")?;
            recording.label = label;
            recording.begin(read_clock_us());
            if let Some(command) = entrypoint {
                recording.of.command = command;
            }
            let order = recording.order(recording.label.as_deref().unwrap_or(DEFAULT_LABEL));
            return Ok(RecordReport::of(&order, None, None));
        }
        let (mut order, _) = self.orders.recordings.order(&key, label.as_deref()).context("a recording")?;
        if let Some(command) = entrypoint {
            order.entrypoint = command;
        }
        if order.reads.is_empty() {
            bail!(
                "{target}: nothing was read since the recording began; what the kernel has in memory is not asked for \
                 again: start the workload on a new mount"
            );
        }
        let material = excerpt.then(|| self.orders.recordings.material(&key, &order)).flatten();
        if let Some(material) = &material {
            material.complete().await;
        }
        let shelf = self.orders.shelf.clone();
        let keep = move || -> anyhow::Result<_> {
            // The order is worth keeping without it.
            let made = material.map(|material| {
                make(&material, shelf.dir()).unwrap_or_else(|error| Err(format!("making it failed: {error:#}")))
            });
            let (file, why_not) = match made {
                Some(Ok((layout, file))) => {
                    order.excerpt = Some(layout);
                    (Some(file), None)
                }
                Some(Err(why_not)) => (None, Some(why_not)),
                None => (None, None),
            };
            let path = shelf.put(&order, file.as_ref().map(|file| file.path())).context("keeping the load order")?;
            Ok((order, path, why_not))
        };
        let (order, path, why_not) = tokio::task::spawn_blocking(keep).await??;
        if action == RecordAction::Stop
            && let Some(recording) = self.orders.recordings.lock().get_mut(&key)
        {
            recording.end();
        }
        let document = serde_json::from_slice(&order.to_bytes()?)?;
        tracing::info!(image = order.reference, label = order.label, spans = order.spans(), "load order recorded");
        Ok(RecordReport { no_excerpt: why_not, ..RecordReport::of(&order, Some(path), Some(document)) })
    }

    /// The recording that `target` means: a mount point, an image, or a manifest's digest.
    async fn recording_of(self: &Arc<Self>, target: &str) -> anyhow::Result<Key> {
        let served = self.served.lock().await;
        for mount in served.mounts.iter().rev() {
            let is_it = mount.report.dir.to_str() == Some(target)
                || names_image(target, &mount.report.image, &mount.report.manifest);
            if is_it {
                let key = Key::Mount(mount.report.dir.clone());
                let (image, reference) = (mount.report.manifest, mount.report.image.clone());
                self.take_up(&served, &key, Recorded { image, reference, command: Vec::new() }, &mount.layers);
                return Ok(key);
            }
        }
        for hold in served.holds.values() {
            let reference = &hold.layer.source.image;
            let Some(image) = reference.parse::<ImageRef>().ok().and_then(|image| image.digest()) else { continue };
            let key = Key::Image(image);
            // containerd's layers are known by their manifest; by which tag it was pulled only the recording knows.
            let tagged = self.orders.recordings.reference(&key);
            if names_image(target, tagged.as_ref().unwrap_or(reference), &image) {
                let of_image = served.holds.values().filter(|other| other.layer.source.image == *reference);
                let names: LayerNames = of_image.map(|hold| hold.layer.name.clone()).collect();
                let recorded = Recorded { image, reference: reference.clone(), command: Vec::new() };
                self.take_up(&served, &key, recorded, &names);
                return Ok(key);
            }
        }
        bail!("{target}: no mount and no image that is shown; `sociblk ls` shows what is")
    }

    /// What an earlier daemon began is recorded from now on.
    fn take_up(self: &Arc<Self>, served: &Served, key: &Key, of: Recorded, names: &LayerNames) {
        if !self.orders.recordings.lock().contains_key(key) {
            self.record(served, key, of, names);
        }
    }

    /// Keeps what is recorded, where the settings want it: this process ends.
    pub(in crate::node) async fn keep_all_orders(&self) {
        let keys: Vec<Key> = self.orders.recordings.lock().keys().cloned().collect();
        for key in keys {
            self.keep_order(&key).await;
        }
    }
}

/// Whether `target` means an image by its name, with or without digest, or by its manifest.
fn names_image(target: &str, image: &str, manifest: &Digest) -> bool {
    if target == image || target == manifest.to_string() {
        return true;
    }
    let (Ok(wanted), Ok(image)) = (target.parse::<ImageRef>(), image.parse::<ImageRef>()) else { return false };
    let same_place = (wanted.registry(), wanted.repository()) == (image.registry(), image.repository());
    let same_name = match (wanted.digest(), image.tag()) {
        (Some(digest), _) => digest == *manifest,
        (None, Some(tag)) => wanted.tag() == Some(tag),
        (None, None) => false,
    };
    same_place && same_name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_meant_by_name_or_digest() {
        let digest = Digest::of(b"m");
        for (target, image, want) in [
            ("python", "docker.io/library/python:latest", true),
            ("python:3", "python:latest", false),
            ("localhost:5000/a:1", "localhost:5000/a:1", true),
            ("localhost:5000/b:1", "localhost:5000/a:1", false),
            (&digest.to_string(), "localhost:5000/a:1", true),
            (&format!("localhost:5000/a@{digest}"), "localhost:5000/a:1", true),
            ("oci:/x:1", "oci:/x:1", true),
            ("not an image", "localhost:5000/a:1", false),
        ] {
            assert_eq!(names_image(target, image, &digest), want, "{target} {image}");
        }
    }
}
