use serde_json::{Value, json};

use super::*;

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// As the distribution project's registry sends it for `docker push`.
fn envelope(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut event = json!({
        "id": "320678d8-ca14-430f-8bb6-4ca139cd83f7", "timestamp": "2026-03-09T14:44:26.402973972-08:00", "action": "push",
        "target": {
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json", "digest": DIGEST, "size": 708, "length": 708,
            "repository": "team/hello-world", "url": format!("http://registry.example:5000/v2/team/hello-world/manifests/{DIGEST}"), "tag": "latest",
        },
        "request": {
            "id": "6df24a34-0959-4923-81ca-14f09767db19", "addr": "192.168.64.11:42961", "host": "registry.example:5000",
            "method": "PUT", "useragent": "curl/8.38.0",
        },
        "actor": {}, "source": {"addr": "xtal.local:5000", "instanceID": "a53db899-3b4b-4a62-a067-8dd013beaca4"},
    });
    change(&mut event);
    json!({"events": [event]}).to_string().into_bytes()
}

/// As EventBridge delivers it.
fn action(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut event = json!({
        "version": "0", "id": "13cde686-328b-6117-af20-0e5566167482", "detail-type": "ECR Image Action", "source": "aws.ecr",
        "account": "123456789012", "time": "2026-11-16T01:54:34Z", "region": "us-west-2", "resources": [],
        "detail": {
            "result": "SUCCESS", "repository-name": "team/app", "image-digest": DIGEST, "action-type": "PUSH", "image-tag": "1.2",
            "manifest-media-type": "application/vnd.oci.image.manifest.v1+json",
            "artifact-media-type": "application/vnd.oci.image.config.v1+json",
        },
    });
    change(&mut event);
    event.to_string().into_bytes()
}

fn told(found: Result<Vec<Result<Push, Rejection>>, BuilderError>) -> Result<String, &'static str> {
    let mut found = found.expect("readable");
    assert_eq!(found.len(), 1);
    let push = found.remove(0).map_err(Rejection::word)?;
    Ok(format!("{} {}", push.image, push.tag.unwrap_or_default()))
}

fn image(name: &str, tag: &str) -> Result<String, &'static str> {
    Ok(format!("{name}@{DIGEST} {tag}"))
}

#[test]
fn events_of_the_distribution_project() {
    let set = |pointer: &'static str, value: Value| envelope(|e| *e.pointer_mut(pointer).expect(pointer) = value);
    let without = |object: &'static str, key: &str| {
        envelope(|e| {
            e.pointer_mut(object).and_then(Value::as_object_mut).expect(object).remove(key);
        })
    };
    for (body, want) in [
        (envelope(|_| {}), image("registry.example:5000/team/hello-world", "latest")),
        (without("/target", "tag"), image("registry.example:5000/team/hello-world", "")),
        (
            set("/target/mediaType", media_type::OCI_INDEX.into()),
            image("registry.example:5000/team/hello-world", "latest"),
        ),
        (set("/request/host", "[::1]:5000".into()), image("[::1]:5000/team/hello-world", "latest")),
        (set("/action", "pull".into()), Err("not_a_push")),
        (set("/action", "delete".into()), Err("not_a_push")),
        (set("/action", json!(["push"])), Err("malformed")),
        (set("/target/mediaType", "application/octet-stream".into()), Err("media_type")),
        (set("/target/mediaType", "application/vnd.docker.image.rootfs.diff.tar.gzip".into()), Err("media_type")),
        (set("/target/mediaType", 7.into()), Err("malformed")),
        (set("/target/tag", format!("sha256-{}", &DIGEST[7..]).into()), Err("own")),
        (set("/target/tag", format!("sha256-{}.sig", &DIGEST[7..]).into()), Err("own")),
        (set("/target/tag", "sha256-short".into()), image("registry.example:5000/team/hello-world", "sha256-short")),
        (set("/target/tag", "-x".into()), Err("malformed")),
        (set("/target/tag", "a/b".into()), Err("malformed")),
        (set("/target/tag", "1@sha256:00".into()), Err("malformed")),
        (set("/target/digest", "sha256:12".into()), Err("malformed")),
        (set("/target/digest", "md5:d41d8cd98f00b204e9800998ecf8427e".into()), Err("malformed")),
        (without("/target", "digest"), Err("malformed")),
        (without("", "target"), Err("malformed")),
        (without("", "action"), Err("malformed")),
        (without("", "request"), Err("malformed")),
        (set("/target/repository", "../../etc/passwd".into()), Err("malformed")),
        (set("/target/repository", "a/../b".into()), Err("malformed")),
        (set("/target/repository", "/a".into()), Err("malformed")),
        (set("/target/repository", "a//b".into()), Err("malformed")),
        (set("/target/repository", "a%2f..%2fb".into()), Err("malformed")),
        (set("/target/repository", "a?x=y".into()), Err("malformed")),
        (set("/target/repository", "a\u{0}b".into()), Err("malformed")),
        (set("/target/repository", "a:5/b".into()), Err("malformed")),
        (set("/target/repository", "Team/App".into()), Err("malformed")),
        (set("/target/repository", "".into()), Err("malformed")),
        (set("/target/repository", "x".repeat(300).into()), Err("malformed")),
        (set("/target/repository", json!({"a": 1})), Err("malformed")),
        (set("/request/host", "".into()), Err("malformed")),
        // Without a dot or port it would be read as a repository of Docker Hub.
        (set("/request/host", "evil".into()), Err("malformed")),
        (set("/request/host", "user:password@registry.example".into()), Err("malformed")),
        (set("/request/host", "registry.example/more".into()), Err("malformed")),
        (set("/request/host", "oci:/etc".into()), Err("malformed")),
    ] {
        assert_eq!(told(distribution(&body, None)), want, "{}", String::from_utf8_lossy(&body));
    }
}

#[test]
fn one_bad_event_leaves_the_others() {
    let good: Value = serde_json::from_slice(&envelope(|_| {})).expect("JSON");
    let body = json!({"events": [7, good["events"][0], null, {"action": "pull"}, "push"]}).to_string();
    let found = distribution(body.as_bytes(), None).expect("an envelope");
    let words: Vec<_> = found.iter().map(|f| f.as_ref().map_or_else(|r| r.word(), |_| "push")).collect();
    assert_eq!(words, ["malformed", "push", "malformed", "not_a_push", "malformed"]);
}

#[test]
fn events_of_ecr() {
    let set = |pointer: &'static str, value: Value| action(|e| *e.pointer_mut(pointer).expect(pointer) = value);
    let host = "123456789012.dkr.ecr.us-west-2.amazonaws.com/team/app";
    let older = action(|e| {
        let detail = e["detail"].as_object_mut().expect("an object");
        for key in ["manifest-media-type", "artifact-media-type", "image-tag"] {
            detail.remove(key);
        }
    });
    for (body, want) in [
        (action(|_| {}), image(host, "1.2")),
        (older, image(host, "")),
        (
            set("/region", "cn-north-1".into()),
            image("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn/team/app", "1.2"),
        ),
        (set("/detail-type", "ECR Image Scan".into()), Err("not_a_push")),
        (set("/detail/action-type", "DELETE".into()), Err("not_a_push")),
        (set("/detail/result", "FAILURE".into()), Err("not_a_push")),
        (set("/detail/artifact-media-type", "application/vnd.amazon.soci.index.v1+json".into()), Err("own")),
        (set("/detail/artifact-media-type", "application/vnd.cncf.helm.config.v1+json".into()), Err("media_type")),
        (set("/detail/manifest-media-type", "text/html".into()), Err("media_type")),
        (set("/detail/repository-name", "a/../b".into()), Err("malformed")),
        (set("/detail/image-digest", "sha256:zz".into()), Err("malformed")),
        (set("/detail/image-tag", json!(1)), Err("malformed")),
        (set("/account", "evil.example/x".into()), Err("malformed")),
        (set("/account", "12345678901".into()), Err("malformed")),
        (set("/region", "us.evil.example/".into()), Err("malformed")),
        (set("/detail", json!([])), Err("malformed")),
    ] {
        assert_eq!(told(ecr(&body, None)), want, "{}", String::from_utf8_lossy(&body));
    }
}

#[test]
fn the_settings_may_name_the_registry() {
    let want = |repository: &str, tag: &str| image(&format!("127.0.0.1:5000/{repository}"), tag);
    assert_eq!(told(ecr(&action(|_| {}), Some("127.0.0.1:5000"))), want("team/app", "1.2"));
    assert_eq!(told(distribution(&envelope(|_| {}), Some("127.0.0.1:5000"))), want("team/hello-world", "latest"));
}

#[test]
fn what_is_no_envelope_is_an_error() {
    let deep = format!("{{\"events\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    for body in ["", "null", "[]", "7", "{", "{\"events\":{}}", "{}", "\u{feff}{}", &deep, "{\"events\":[]} x"] {
        let shown = body.get(..40).unwrap_or(body);
        assert!(matches!(distribution(body.as_bytes(), None), Err(BuilderError::Notification { .. })), "{shown}");
    }
    for body in ["", "null", "[]", "{\"detail\":", &deep, "\u{0}"] {
        let shown = body.get(..40).unwrap_or(body);
        assert!(matches!(ecr(body.as_bytes(), None), Err(BuilderError::Notification { .. })), "{shown}");
    }
    assert_eq!(distribution(b"{\"events\":[]}", None).expect("an envelope"), Vec::new());
}
