//! Which images are wanted: registries, repositories and tags by globs.

use super::events::{Push, Rejection};
use crate::config::Builder;

/// The filter of the settings.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    registries: Vec<String>,
    repositories: Vec<String>,
    exclude_repositories: Vec<String>,
    tags: Vec<String>,
    exclude_tags: Vec<String>,
    untagged: bool,
}

impl Filter {
    /// As the settings have it.
    #[must_use]
    pub fn new(settings: &Builder) -> Self {
        Self {
            registries: settings.registries.clone(),
            repositories: settings.repositories.clone(),
            exclude_repositories: settings.exclude_repositories.clone(),
            tags: settings.tags.clone(),
            exclude_tags: settings.exclude_tags.clone(),
            untagged: settings.untagged,
        }
    }

    /// Lets a push through, or says why not.
    ///
    /// # Errors
    /// The reason.
    pub fn check(&self, push: &Push) -> Result<(), Rejection> {
        if !wanted(push.image.registry(), &self.registries, &[]) {
            return Err(Rejection::Registry);
        }
        if !wanted(push.image.repository(), &self.repositories, &self.exclude_repositories) {
            return Err(Rejection::Repository);
        }
        match &push.tag {
            None if !self.untagged => Err(Rejection::Untagged),
            Some(tag) if !wanted(tag, &self.tags, &self.exclude_tags) => Err(Rejection::Tag),
            _ => Ok(()),
        }
    }
}

fn wanted(name: &str, include: &[String], exclude: &[String]) -> bool {
    (include.is_empty() || include.iter().any(|glob| matches(glob, name))) && !exclude.iter().any(|g| matches(g, name))
}

/// `?` is any character but a slash, `*` any number of those, `**` any number of any characters. In time proportional to
/// both lengths, whatever the glob.
fn matches(glob: &str, name: &str) -> bool {
    let name = name.as_bytes();
    // Which prefixes of the name the glob matches so far.
    let mut reached = vec![false; name.len() + 1];
    if let Some(start) = reached.first_mut() {
        *start = true;
    }
    let mut rest = glob.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let mut next = vec![false; name.len() + 1];
        let (is_star, crosses) = (first == b'*', rest.starts_with(b"**"));
        rest = if crosses { rest.strip_prefix(b"**").unwrap_or_default() } else { after };
        let mut carried = false;
        for (at, to) in next.iter_mut().enumerate() {
            let here = reached.get(at).copied().unwrap_or_default();
            let before = at.checked_sub(1).and_then(|i| name.get(i).map(|byte| (i, *byte)));
            *to = if is_star {
                carried = here || (carried && before.is_some_and(|(_, byte)| crosses || byte != b'/'));
                carried
            } else {
                before.is_some_and(|(i, byte)| {
                    reached.get(i).copied().unwrap_or_default() && (byte == first || (first == b'?' && byte != b'/'))
                })
            };
        }
        reached = next;
    }
    reached.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_as_people_expect() {
        for (glob, name, want) in [
            ("*", "app", true),
            ("*", "team/app", false),
            ("**", "team/app/x", true),
            ("team/*", "team/app", true),
            ("team/*", "team/app/x", false),
            ("team/**", "team/app/x", true),
            ("team/**", "teams/app", false),
            ("**/app", "a/b/app", true),
            ("v?.*", "v1.22", true),
            ("v?.*", "v10.2", false),
            ("a?b", "a/b", false),
            ("*-rc*", "1.0-rc1", true),
            ("", "", true),
            ("", "a", false),
            ("a*", "a", true),
            ("*a*a*a*a*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
            ("ö*", "ö1", true),
        ] {
            assert_eq!(matches(glob, name), want, "{glob} {name}");
        }
    }

    #[test]
    fn a_push_is_let_through_or_the_reason_is_told() {
        let filter = Filter::new(&Builder {
            registries: vec!["*.example".into(), "127.0.0.1:*".into()],
            repositories: vec!["team/**".into()],
            exclude_repositories: vec!["team/private/**".into()],
            exclude_tags: vec!["*-dev".into()],
            ..Builder::default()
        });
        let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for (name, tag, want) in [
            ("r.example/team/app", Some("1"), Ok(())),
            ("127.0.0.1:5000/team/app", Some("1"), Ok(())),
            ("r.elsewhere/team/app", Some("1"), Err(Rejection::Registry)),
            ("r.example/other/app", Some("1"), Err(Rejection::Repository)),
            ("r.example/team/private/app", Some("1"), Err(Rejection::Repository)),
            ("r.example/team/app", Some("1-dev"), Err(Rejection::Tag)),
            ("r.example/team/app", None, Err(Rejection::Untagged)),
        ] {
            let image = format!("{name}@{digest}").parse().expect(name);
            let push = Push { image, tag: tag.map(str::to_owned), digest: digest.parse().expect("a digest") };
            assert_eq!(filter.check(&push), want, "{name} {tag:?}");
        }
        let open = Filter::new(&Builder { untagged: true, ..Builder::default() });
        let image = format!("r.example/a@{digest}").parse().expect("a reference");
        assert_eq!(open.check(&Push { image, tag: None, digest: digest.parse().expect("a digest") }), Ok(()));
    }
}
