//! Load orders of the images that this node starts: recorded ([`record`]), looked for ([`find`]), followed ([`follow`]), and
//! told of ([`followed`]); and the excerpts that come with them ([`excerpt`]).

use std::path::PathBuf;
use std::time::Duration;

use crate::config::{self, OrderPolicy};
use crate::order::{Choice, Limits, Shelf, ShelfLimits};
use crate::program::Command;
use crate::registry::Image;

mod excerpt;
mod find;
mod follow;
mod followed;
mod record;
mod recording;

pub(super) use excerpt::Lent;
pub(super) use find::Hunt;
pub(super) use follow::{Shown, follow};
pub(super) use followed::{Followed, Outcome};
pub(super) use recording::{Key, Recorded, Recordings};

use super::paths::Paths;

/// What a node knows of load orders.
pub(super) struct Orders {
    /// Those that are kept.
    pub shelf: Shelf,
    /// What is being recorded.
    pub recordings: Recordings,
    /// What layers follow.
    pub followed: Followed,
    /// What layers borrow from.
    pub lent: Lent,
    settings: config::LoadOrder,
}

/// The shelf of a root directory.
pub(super) fn shelf(paths: &Paths, settings: &config::LoadOrder) -> Shelf {
    Shelf::new(paths.orders_dir(), ShelfLimits { number: settings.keep, bytes: settings.keep_bytes.0 })
}

/// Which load order a start follows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Wanted {
    /// The one that is chosen of those that are found.
    Chosen(Choice),
    /// The one in this file.
    File(PathBuf),
}

impl Orders {
    pub fn new(paths: &Paths, settings: &config::LoadOrder) -> Self {
        Self {
            shelf: shelf(paths, settings),
            recordings: Recordings::default(),
            followed: Followed::default(),
            lent: Lent::default(),
            settings: settings.clone(),
        }
    }

    /// What is wanted, by the word of whoever starts the image, else by the settings: a label, `off`, or a file's absolute
    /// path.
    pub fn wanted(&self, word: Option<&str>) -> Wanted {
        let choice = match word {
            Some("off") => Choice::Off,
            Some(path) if path.starts_with('/') => return Wanted::File(path.into()),
            Some(label) => Choice::Label(label.to_owned()),
            None => match self.settings.policy {
                OrderPolicy::Off => Choice::Off,
                OrderPolicy::Newest => Choice::Newest,
                OrderPolicy::Label => Choice::Label(self.settings.label.clone()),
                OrderPolicy::Entrypoint => Choice::Entrypoint,
            },
        };
        Wanted::Chosen(choice)
    }

    fn limits(&self) -> Limits {
        let total_bytes = match self.settings.max_bytes.0 {
            0 => u64::MAX,
            limit => limit,
        };
        Limits { total_bytes, ..Limits::default() }
    }

    /// Whether excerpts that stand beside an image are believed.
    fn believes(&self, image: &str) -> bool {
        self.settings.trusted_excerpts.iter().any(|prefix| is_named(prefix, image))
    }

    /// After which time a start is kept by itself, if it is.
    fn keeps_after(&self) -> Option<Duration> {
        self.settings.record.then(|| Duration::from_secs(self.settings.record_s))
    }
}

/// Whether `prefix` names an image: all of them, or by whole parts of its name.
fn is_named(prefix: &str, image: &str) -> bool {
    let ends = |rest: &str| {
        rest.is_empty()
            || prefix.ends_with('/')
            || rest.starts_with('/')
            // Not of a bare host: what follows it there is a port.
            || (prefix.contains('/') && rest.starts_with([':', '@']))
    };
    prefix == "*" || (!prefix.is_empty() && image.strip_prefix(prefix).is_some_and(ends))
}

/// The command that an image runs by itself: its entrypoint and its arguments.
pub(super) fn command_of(image: &Image) -> Vec<String> {
    image.config.as_ref().map(|config| Command::of_config(&config.bytes).words).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_named_by_whole_parts() {
        for (prefix, image, want) in [
            ("*", "registry.example/a:1", true),
            ("", "registry.example/a:1", false),
            ("registry.example", "registry.example/a:1", true),
            ("registry.example", "registry.example.evil.org/a:1", false),
            ("registry.example", "registry.example:5000/a:1", false),
            ("registry.example/team", "registry.example/team/a:1", true),
            ("registry.example/team", "registry.example/team:1", true),
            ("registry.example/team", "registry.example/team@sha256:12", true),
            ("registry.example/team", "registry.example/team-evil/a:1", false),
            ("registry.example/team/", "registry.example/team/a:1", true),
            ("registry.example/team/", "registry.example/team-evil/a:1", false),
            ("localhost:5000/", "localhost:5000/a:1", true),
        ] {
            assert_eq!(is_named(prefix, image), want, "{prefix} {image}");
        }
    }
}
