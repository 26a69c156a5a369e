//! A client of CRI, for `scripts/e2e-cri`: it asks a container runtime and an image service what a kubelet asks them.
//!
//! ```text
//! cargo test --test cri --no-run       # prints the program's path
//! PROGRAM SOCKET [--ids FIRST] VERB ARGUMENTS...     # see VERBS
//! ```
//!
//! Run without a socket, as by `cargo test`, it says that it was skipped.

mod messages;

use std::future::Future;
use std::io::Write as _;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::Duration;

use messages as api;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

/// No call takes longer, whatever hangs.
const LIMIT: Duration = Duration::from_secs(300);

/// Users and groups of a user namespace, as many as a kubelet gives a pod.
const IDS: u32 = 1 << 16;

const VERBS: &str = "\
pull IMAGE [USER:PASSWORD]       prints the image's ID
images                           prints names, one a line
rmi IMAGE
fsinfo                           prints where images are, one a line
run-pod NAME LOG_DIR             a sandbox on the host's network; prints its ID
create POD NAME IMAGE COMMAND... prints the container's ID
start CONTAINER | stop CONTAINER | rm CONTAINER
status CONTAINER                 prints created, running, exited or unknown, and the exit code
exec CONTAINER COMMAND...        prints what it prints; ends as it ends
stop-pod POD | rm-pod POD
list                             prints the IDs of all containers and sandboxes
ready                            succeeds when the runtime is
With --ids FIRST, run-pod and create are of a sandbox with a user namespace, whose root is FIRST outside, and a network of its own.
";

fn say(text: &[u8]) {
    // A closed stdout leaves nothing to do.
    let _ = std::io::stdout().write_all(text);
}

fn complain(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

struct Cri(Channel);

impl Cri {
    async fn ask<In, Out>(&self, service: &str, method: &str, message: In) -> Result<Out, Status>
    where
        In: prost::Message + Send + 'static,
        Out: prost::Message + Default + Send + 'static,
    {
        let path = format!("/runtime.v1.{service}/{method}");
        let path = PathAndQuery::try_from(path).map_err(|error| Status::internal(error.to_string()))?;
        let mut grpc = Grpc::new(self.0.clone());
        grpc.ready().await.map_err(|error| Status::unavailable(format!("{error:?}")))?;
        let mut request = Request::new(message);
        request.set_timeout(LIMIT);
        Ok(grpc.unary(request, path, ProstCodec::<In, Out>::default()).await?.into_inner())
    }

    async fn image<In, Out>(&self, method: &str, message: In) -> Result<Out, Status>
    where
        In: prost::Message + Send + 'static,
        Out: prost::Message + Default + Send + 'static,
    {
        self.ask("ImageService", method, message).await
    }

    async fn runtime<In, Out>(&self, method: &str, message: In) -> Result<Out, Status>
    where
        In: prost::Message + Send + 'static,
        Out: prost::Message + Default + Send + 'static,
    {
        self.ask("RuntimeService", method, message).await
    }
}

/// The host's network, or with a `first` one a user namespace, which cannot be had with that.
fn namespaces(first: Option<u32>) -> Option<api::NamespaceOption> {
    // `NamespaceMode`: NODE is 2; POD is 0.
    Some(match first {
        None => api::NamespaceOption { network: 2, ..api::NamespaceOption::default() },
        Some(host_id) => {
            let ids = vec![api::IdMapping { host_id, container_id: 0, length: IDS }];
            let own = api::UserNamespace { mode: 0, uids: ids.clone(), gids: ids };
            api::NamespaceOption { userns_options: Some(own), ..api::NamespaceOption::default() }
        }
    })
}

fn pod(name: &str, log_dir: &str, first: Option<u32>) -> api::PodSandboxConfig {
    api::PodSandboxConfig {
        metadata: Some(api::PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            namespace: "test".to_owned(),
            attempt: 0,
        }),
        log_directory: log_dir.to_owned(),
        linux: Some(api::LinuxPodSandboxConfig {
            security_context: Some(api::LinuxSandboxSecurityContext { namespace_options: namespaces(first) }),
        }),
    }
}

fn spec(image: &str) -> Option<api::ImageSpec> {
    Some(api::ImageSpec { image: image.to_owned() })
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Does it; the exit code.
async fn run(cri: &Cri, words_given: &[&str]) -> Result<u8, Status> {
    let (first, words_given) = match words_given {
        ["--ids", first, rest @ ..] => (first.parse().ok(), rest),
        rest => (None, rest),
    };
    match words_given {
        ["pull", image, auth @ ..] => {
            let auth = auth.first().map(|pair| {
                let (user, password) = pair.split_once(':').unwrap_or((pair, ""));
                api::AuthConfig { username: user.to_owned(), password: password.to_owned() }
            });
            let asked = api::PullImageRequest { image: spec(image), auth };
            let pulled: api::PullImageResponse = cri.image("PullImage", asked).await?;
            say(format!("{}\n", pulled.image_ref).as_bytes());
        }
        ["images"] => {
            let found: api::ListImagesResponse = cri.image("ListImages", api::Nothing {}).await?;
            found.images.iter().flat_map(|image| &image.repo_tags).for_each(|tag| say(format!("{tag}\n").as_bytes()));
        }
        ["rmi", image] => {
            let _: api::Nothing = cri.image("RemoveImage", api::RemoveImageRequest { image: spec(image) }).await?;
        }
        ["fsinfo"] => {
            let found: api::ImageFsInfoResponse = cri.image("ImageFsInfo", api::Nothing {}).await?;
            for id in found.image_filesystems.iter().filter_map(|usage| usage.fs_id.as_ref()) {
                say(format!("{}\n", id.mountpoint).as_bytes());
            }
        }
        ["run-pod", name, log_dir] => {
            let asked = api::RunPodSandboxRequest { config: Some(pod(name, log_dir, first)) };
            let made: api::Id = cri.runtime("RunPodSandbox", asked).await?;
            say(format!("{}\n", made.id).as_bytes());
        }
        ["create", pod_id, name, image, command @ ..] => {
            let config = api::ContainerConfig {
                metadata: Some(api::ContainerMetadata { name: (*name).to_owned(), attempt: 0 }),
                image: spec(image),
                command: words(command),
                linux: Some(api::LinuxContainerConfig {
                    security_context: Some(api::LinuxContainerSecurityContext { namespace_options: namespaces(first) }),
                }),
            };
            let asked = api::CreateContainerRequest {
                pod_sandbox_id: (*pod_id).to_owned(),
                config: Some(config),
                sandbox_config: Some(pod(name, "", first)),
            };
            let made: api::Id = cri.runtime("CreateContainer", asked).await?;
            say(format!("{}\n", made.id).as_bytes());
        }
        [verb @ ("start" | "stop" | "rm" | "stop-pod" | "rm-pod"), id] => {
            let method = match *verb {
                "start" => "StartContainer",
                "stop" => "StopContainer",
                "rm" => "RemoveContainer",
                "stop-pod" => "StopPodSandbox",
                _ => "RemovePodSandbox",
            };
            let _: api::Nothing = cri.runtime(method, api::Id { id: (*id).to_owned() }).await?;
        }
        ["status", id] => {
            let found: api::ContainerStatusResponse =
                cri.runtime("ContainerStatus", api::Id { id: (*id).to_owned() }).await?;
            let status = found.status.unwrap_or_default();
            let states = ["created", "running", "exited", "unknown"];
            let state = usize::try_from(status.state).ok().and_then(|state| states.get(state)).unwrap_or(&"unknown");
            say(format!("{state} {}\n", status.exit_code).as_bytes());
        }
        ["exec", id, command @ ..] => {
            let asked = api::ExecSyncRequest {
                container_id: (*id).to_owned(),
                cmd: words(command),
                timeout_s: LIMIT.as_secs().try_into().unwrap_or(i64::MAX),
            };
            let done: api::ExecSyncResponse = cri.runtime("ExecSync", asked).await?;
            say(&done.stdout);
            complain(&String::from_utf8_lossy(&done.stderr));
            return Ok(u8::try_from(done.exit_code).unwrap_or(u8::MAX));
        }
        ["list"] => {
            let found: api::ListResponse = cri.runtime("ListContainers", api::Nothing {}).await?;
            let pods: api::ListResponse = cri.runtime("ListPodSandbox", api::Nothing {}).await?;
            found.items.iter().chain(&pods.items).for_each(|id| say(format!("{}\n", id.id).as_bytes()));
        }
        ["ready"] => {
            let found: api::StatusResponse = cri.runtime("Status", api::Nothing {}).await?;
            let conditions = found.status.unwrap_or_default().conditions;
            let is_ready = conditions.iter().any(|condition| condition.r#type == "RuntimeReady" && condition.status);
            return Ok(if is_ready { 0 } else { 1 });
        }
        _ => return Err(Status::invalid_argument(format!("no such verb; these are there:\n{VERBS}"))),
    }
    Ok(0)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let Some((socket, words)) = words.split_first().filter(|(first, _)| first.starts_with('/')) else {
        complain("SKIPPED: cri: a container runtime; scripts/e2e-cri gives it one");
        return ExitCode::SUCCESS;
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("cri: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let asked: Pin<Box<dyn Future<Output = Result<u8, Status>>>> = Box::pin(async {
        let endpoint = Endpoint::from_shared(format!("unix:{socket}"))
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        run(&Cri(endpoint.connect_lazy()), words).await
    });
    match runtime.block_on(async { tokio::time::timeout(LIMIT, asked).await }) {
        Ok(Ok(code)) => ExitCode::from(code),
        Ok(Err(status)) => {
            complain(&format!("cri: {}: {}", status.code(), status.message()));
            ExitCode::FAILURE
        }
        Err(_) => {
            complain(&format!("cri: no answer within {} s", LIMIT.as_secs()));
            ExitCode::FAILURE
        }
    }
}
