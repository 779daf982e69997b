//! What would make an image smaller or safer. Only what is certain is said: advice that is wrong once is
//! not read again.

use crate::form::{Action, Stage};
use naru_image::oci::ImageConfig;
use naru_image::{LastLink, View};
use naru_objects::ImageAdvice;
use std::fs;
use std::path::{Path, PathBuf};

const WORTH_SAYING_BYTES: u64 = 1 << 20; // less is not worth a person's minute

/// The image as it came out.
pub struct Made<'a> {
    pub stage: &'a Stage,
    pub config: &'a ImageConfig,
    pub is_over_host: bool,
    /// Directories of the layers that this build made, with the Dockerfile's line.
    pub own_layers: Vec<(PathBuf, u32)>,
    pub view: &'a View,
    /// The base is an image rather than another stage.
    pub is_base_pulled: bool,
}

/// What package managers leave behind, and how to avoid it.
const LEFTOVERS: &[(&str, &str)] = &[
    ("var/lib/apt/lists", "end the same RUN with `&& rm -rf /var/lib/apt/lists/*`"),
    ("var/cache/apt/archives", "end the same RUN with `&& apt-get clean`"),
    ("var/cache/apk", "write `apk add --no-cache`"),
    ("var/cache/dnf", "end the same RUN with `&& dnf clean all`"),
    ("root/.cache/pip", "write `pip install --no-cache-dir`"),
    ("root/.npm", "end the same RUN with `&& npm cache clean --force`"),
    ("root/.cargo/registry", "build in a stage of its own and `COPY --from` the program"),
    ("usr/local/cargo/registry", "build in a stage of its own and `COPY --from` the program"),
    ("root/.cache/go-build", "build in a stage of its own and `COPY --from` the program"),
];

const BUILD_TOOLS: &[&str] =
    &["usr/bin/gcc", "usr/local/cargo/bin/cargo", "usr/bin/cargo", "usr/local/go/bin/go"];

/// All advice, in the order of the Dockerfile's lines.
pub fn give(made: &Made<'_>) -> Vec<ImageAdvice> {
    let mut advice = Vec::new();
    let mut say = |line: u32, message: String, hint: &str| {
        advice.push(ImageAdvice { line, message, hint: hint.to_owned() });
    };
    let from_line = made.stage.place.line;
    if made.is_over_host {
        let message =
            "the image lies over this machine's own root: it runs here only and holds every tool".to_owned();
        say(from_line, message, "name a base image of its own in the last `FROM`");
    } else {
        let name = &made.stage.image;
        let is_stage_or_empty = name == "scratch" || name.contains('$');
        let tag = name.rsplit('/').next().unwrap_or(name).split_once(':').map(|it| it.1);
        if !is_stage_or_empty
            && !name.contains('@')
            && matches!(tag, None | Some("latest"))
            && made.is_base_pulled
        {
            let message =
                format!("the base image `{name}` is whatever its newest version is on the day of the build");
            say(from_line, message, "name a version, such as `:1.2`, or a digest");
        }
        for tool in BUILD_TOOLS {
            if made.view.resolve(Path::new(tool), LastLink::Follow).is_ok_and(|it| it.is_some()) {
                let message = format!("the image holds a compiler (/{tool})");
                say(from_line, message, "build in a stage of its own and `COPY --from` the result");
                break;
            }
        }
    }
    let user = made.config.config.user.split(':').next().unwrap_or_default();
    if matches!(user, "" | "0" | "root") {
        say(
            0,
            "the container runs as root".into(),
            "add `USER 65534:65534` if the program needs no privileges",
        );
    }
    for (directory, line) in &made.own_layers {
        for (leftover, hint) in LEFTOVERS {
            let bytes = size_of(&directory.join(leftover), 0);
            if bytes >= WORTH_SAYING_BYTES {
                let message = format!("{} MiB of package files stay in /{leftover}", bytes >> 20);
                say(*line, message, hint);
            }
        }
    }
    for instruction in &made.stage.instructions {
        if let Action::Env(pairs) = &instruction.action {
            for (name, value) in pairs {
                let upper = name.to_ascii_uppercase();
                let is_secret = ["PASSWORD", "SECRET", "TOKEN", "API_KEY", "PRIVATE_KEY"]
                    .iter()
                    .any(|it| upper.ends_with(it));
                if is_secret && !value.is_empty() {
                    let message = format!("`{name}` can be read by everybody who has the image");
                    say(instruction.place.line, message, "give it to the container as a Secret when it runs");
                }
            }
        }
    }
    advice.sort_by_key(|it| it.line);
    advice
}

/// Bytes below a directory of a layer; links are not followed.
fn size_of(path: &Path, depth: u32) -> u64 {
    const DEPTH_MAX: u32 = 32; // deeper trees are estimated too small, nothing worse
    let Ok(meta) = fs::symlink_metadata(path) else { return 0 };
    if meta.is_file() {
        return meta.len();
    }
    if !meta.is_dir() || depth > DEPTH_MAX {
        return 0;
    }
    let Ok(entries) = fs::read_dir(path) else { return 0 };
    entries.flatten().map(|it| size_of(&it.path(), depth + 1)).sum()
}
