//! Which machine an image is made for.

use std::fmt;
use std::str::FromStr;

use super::RegistryError;

/// Operating system, architecture and variant, in Go's names (`linux`, `amd64`, `v7`), normalized.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: String,
}

impl Platform {
    /// Normalized as the field does: `x86_64` is `amd64`, `aarch64` and `arm64/v8` are `arm64`, `arm` is `arm/v7`.
    #[must_use]
    pub fn new(os: &str, architecture: &str, variant: &str) -> Self {
        let (architecture, variant) = (architecture.to_ascii_lowercase(), variant.to_ascii_lowercase());
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("x86_64" | "x86-64" | "amd64", "v1" | "") => ("amd64", ""),
            ("x86_64" | "x86-64", variant) => ("amd64", variant),
            ("aarch64" | "arm64", "8" | "v8" | "") => ("arm64", ""),
            ("aarch64", variant) => ("arm64", variant),
            ("i386" | "i486" | "i586" | "i686" | "386", _) => ("386", ""),
            ("armel", _) => ("arm", "v6"),
            ("armhf", _) | ("arm", "" | "7") => ("arm", "v7"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "6") => ("arm", "v6"),
            ("powerpc64", variant) if cfg!(target_endian = "little") => ("ppc64le", variant),
            (architecture, variant) => (architecture, variant),
        };
        Self { os: os.to_ascii_lowercase(), architecture: architecture.to_owned(), variant: variant.to_owned() }
    }

    /// Operating system, e.g. `linux`.
    #[must_use]
    pub fn os(&self) -> &str {
        &self.os
    }

    /// Architecture in Go's name, e.g. `arm64`.
    #[must_use]
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// Variant, e.g. `v7`; empty when the architecture has none that matters.
    #[must_use]
    pub fn variant(&self) -> &str {
        &self.variant
    }

    /// Linux on this machine's architecture.
    #[must_use]
    pub fn host() -> Self {
        Self::new("linux", std::env::consts::ARCH, "")
    }

    /// How well something made for `other` runs here: 0 is best, `None` not at all. A newer ARM runs older 32-bit
    /// variants, a newer x86 level runs older ones.
    #[must_use]
    pub fn rank(&self, other: &Self) -> Option<u32> {
        if self.os != other.os || self.architecture != other.architecture {
            return None;
        }
        if self.variant == other.variant {
            return Some(0);
        }
        let level = |variant: &str| -> Option<u32> {
            match variant {
                "" => Some(if self.architecture == "arm64" { 8 } else { 1 }),
                text => text.strip_prefix('v')?.split('.').next()?.parse().ok(),
            }
        };
        match self.architecture.as_str() {
            "arm" | "amd64" | "arm64" => level(&self.variant)?.checked_sub(level(&other.variant)?).map(|d| d + 1),
            _ => None,
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

impl FromStr for Platform {
    type Err = RegistryError;

    /// `OS/ARCH[/VARIANT]`.
    fn from_str(text: &str) -> Result<Self, RegistryError> {
        let parts: Vec<&str> = text.split('/').collect();
        match parts.as_slice() {
            [os, arch] if !os.is_empty() && !arch.is_empty() => Ok(Self::new(os, arch, "")),
            [os, arch, variant] if !os.is_empty() && !arch.is_empty() && !variant.is_empty() => {
                Ok(Self::new(os, arch, variant))
            }
            _ => Err(RegistryError::Reference {
                text: text.to_owned(),
                reason: "a platform is OS/ARCH[/VARIANT], e.g. linux/arm64".to_owned(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(text: &str) -> Platform {
        text.parse().expect(text)
    }

    #[test]
    fn names_are_normalized() {
        for (text, want) in [
            ("linux/x86_64", "linux/amd64"),
            ("Linux/AMD64/v1", "linux/amd64"),
            ("linux/aarch64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("linux/amd64/v3", "linux/amd64/v3"),
        ] {
            assert_eq!(p(text).to_string(), want);
        }
        for bad in ["", "linux", "linux/", "/amd64", "a/b/c/d", "linux/arm/"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn newer_machines_take_older_variants_but_not_the_reverse() {
        assert_eq!(p("linux/arm/v7").rank(&p("linux/arm/v7")), Some(0));
        assert!(p("linux/arm/v7").rank(&p("linux/arm/v6")) < p("linux/arm/v7").rank(&p("linux/arm/v5")));
        assert_eq!(p("linux/arm/v6").rank(&p("linux/arm/v7")), None);
        assert_eq!(p("linux/amd64").rank(&p("linux/amd64/v2")), None);
        assert!(p("linux/amd64/v2").rank(&p("linux/amd64")).is_some());
        assert_eq!(p("linux/amd64").rank(&p("linux/arm64")), None);
        assert_eq!(p("linux/amd64").rank(&p("windows/amd64")), None);
        assert_eq!(p("linux/amd64").rank(&Platform::new("unknown", "unknown", "")), None);
        assert_eq!(p("linux/arm64").rank(&p("linux/arm64/v8")), Some(0));
    }
}
