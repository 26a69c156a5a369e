//! What is known of a cluster's secrets.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use base64::Engine as _;
use serde::Deserialize;

use crate::registry::{DockerAuths, Keychain, Login, Wanted};

/// The type of secrets that are asked for, and the key of their only value.
pub(super) const TYPE: &str = "kubernetes.io/dockerconfigjson";
const KEY: &str = ".dockerconfigjson";

/// Namespace and name.
pub(super) type Name = (String, String);

/// A secret as the API has it. It shows nothing.
#[derive(Deserialize)]
pub(super) struct Secret {
    pub metadata: Metadata,
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    data: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Metadata {
    pub name: String,
    pub namespace: String,
    pub resource_version: String,
}

impl Secret {
    pub(super) fn name(&self) -> Name {
        (self.metadata.namespace.clone(), self.metadata.name.clone())
    }

    fn auths(&self) -> Result<DockerAuths, String> {
        // An API server that knows no field selectors sends all secrets.
        if self.kind != TYPE {
            return Err(format!("its type is not {TYPE}"));
        }
        let text = self.data.get(KEY).ok_or_else(|| format!("it has no {KEY}"))?;
        let json = base64::engine::general_purpose::STANDARD.decode(text);
        DockerAuths::parse(&json.map_err(|_| format!("its {KEY} is no base64"))?)
    }
}

/// The credentials in a cluster's secrets, of all namespaces; shared by its clones.
#[derive(Clone, Default)]
pub struct Secrets(Arc<RwLock<BTreeMap<Name, DockerAuths>>>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({} secrets)", self.len())
    }
}

impl Secrets {
    /// How many secrets are known that hold credentials.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// These are all.
    pub(super) fn replace(&self, all: &[Secret]) {
        let known = all.iter().filter_map(|secret| Some((secret.name(), usable(secret)?))).collect();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = known;
    }

    /// This one is new, or has changed.
    pub(super) fn put(&self, secret: &Secret) {
        let auths = usable(secret);
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        match auths {
            Some(auths) => known.insert(secret.name(), auths),
            None => known.remove(&secret.name()),
        };
    }

    /// This one is gone.
    pub(super) fn remove(&self, name: &Name) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}

fn usable(secret: &Secret) -> Option<DockerAuths> {
    match secret.auths() {
        Ok(auths) => Some(auths).filter(|auths| !auths.is_empty()),
        Err(reason) => {
            let Metadata { namespace, name, .. } = &secret.metadata;
            tracing::warn!(namespace, name, reason, "a secret of Kubernetes is passed over");
            None
        }
    }
}

impl Keychain for Secrets {
    /// Those of all secrets, in the order of their namespaces and names.
    fn find(&self, wanted: Wanted<'_>) -> Vec<Login> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        known.values().flat_map(|auths| auths.find(wanted)).collect()
    }
}
