use std::sync::Mutex;

use super::*;
use crate::registry::{Client, ClientConfig, ImageSource, Platform, RegistryError, Secret};
use crate::testkit::registry::TestRegistry;
use crate::units::Digest;

/// Logins that a test changes.
#[derive(Default)]
struct Fake(Mutex<Vec<Login>>);

impl Fake {
    fn set(&self, logins: &[(&str, &str)]) {
        let login = |(user, password): &(&str, &str)| Login {
            user: (*user).to_owned(),
            password: Secret::new((*password).to_owned()),
        };
        *self.0.lock().expect("unpoisoned") = logins.iter().map(login).collect();
    }
}

impl Keychain for Fake {
    fn find(&self, wanted: Wanted<'_>) -> Vec<Login> {
        assert!(wanted.is_registry && wanted.image.repository() == "team/app", "{wanted:?}");
        self.0.lock().expect("unpoisoned").clone()
    }
}

fn setting() -> (TestRegistry, Arc<Fake>, Client) {
    let registry = TestRegistry::start();
    registry.put_image("team/app", "1", &[(b"layer", Digest::of(b"tar"))]);
    let (fake, keychains) = (Arc::new(Fake::default()), Keychains::default());
    keychains.add(Arc::clone(&fake) as Arc<dyn Keychain>);
    let client = Client::new(ClientConfig { keychains, ..ClientConfig::default() });
    (registry, fake, client)
}

async fn resolve(registry: &TestRegistry, client: &Client) -> Result<(), RegistryError> {
    let source: ImageSource = format!("{}/team/app:1", registry.host()).parse().expect("a reference");
    client.resolve(&source, &Platform::new("linux", "amd64", "")).await.map(drop)
}

#[tokio::test]
async fn credentials_are_tried_one_after_the_other() {
    for bearer in [true, false] {
        let (registry, fake, client) = setting();
        if bearer {
            registry.require_bearer(Some(("user", "right")), 1000);
        } else {
            registry.require_basic("user", "right");
        }
        fake.set(&[("other", "wrong"), ("user", "old"), ("user", "right"), ("never", "asked")]);
        resolve(&registry, &client).await.expect("the third is right");
        let tried = registry.requests().len();
        resolve(&registry, &client).await.expect("it is kept");
        assert!(registry.requests().len() <= tried + 2, "nothing is tried again that worked");

        fake.set(&[("user", "old"), ("other", "wrong")]);
        let fresh = Client::new(client.config().clone());
        let error = resolve(&registry, &fresh).await.expect_err("all are wrong");
        assert!(error.is_auth() && !error.to_string().contains("wrong"), "{error}");
    }
}

#[tokio::test]
async fn a_public_image_is_had_though_a_credential_is_stale() {
    let (registry, fake, client) = setting();
    registry.require_bearer(None, 1000);
    fake.set(&[("user", "stale")]);
    resolve(&registry, &client).await.expect("anonymously");
}

#[tokio::test]
async fn what_is_replaced_counts_when_the_registry_refuses_what_was_before() {
    for bearer in [true, false] {
        let (registry, fake, client) = setting();
        for password in ["first", "second", "third"] {
            if bearer {
                registry.require_bearer(Some(("user", password)), 2);
            } else {
                registry.require_basic("user", password);
            }
            fake.set(&[("user", password)]);
            for _ in 0..3 {
                resolve(&registry, &client).await.expect(password);
            }
        }
    }
}

#[test]
fn keychains_are_asked_in_order_and_show_nothing() {
    let (keychains, image) = (Keychains::default(), "a.io/team/app".parse().expect("a reference"));
    let (one, two) = (Arc::new(Fake::default()), Arc::new(Fake::default()));
    one.set(&[("a", "1"), ("b", "2")]);
    two.set(&[("b", "2"), ("c", "3")]);
    keychains.clone().add(one);
    keychains.add(two.clone());
    let find = || keychains.find(Wanted { image: &image, host: "a.io", is_registry: true });
    assert_eq!(find().iter().map(|login| login.user.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
    assert!(!format!("{keychains:?} {:?}", find()).contains('1'));
    let many: Vec<String> = (0..50).map(|n| format!("user{n}")).collect();
    two.set(&many.iter().map(|user| (user.as_str(), "x")).collect::<Vec<_>>());
    assert_eq!(find().len(), MAX_CANDIDATES);
}
