//! The paths of the admin API.

use http::Method;

/// What a path asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route<'a> {
    Status,
    Agents,
    Disconnect(&'a str),
    Flows,
    Mesh,
    Config,
    Explain,
    OpenApi,
    Reload,
    Drain,
}

impl<'a> Route<'a> {
    pub(super) fn parse(path: &'a str) -> Option<Self> {
        Some(match path.strip_prefix("/api/v1/")? {
            "status" => Self::Status,
            "agents" => Self::Agents,
            "flows" => Self::Flows,
            "mesh" => Self::Mesh,
            "config" => Self::Config,
            "policy/explain" => Self::Explain,
            "openapi.json" => Self::OpenApi,
            "reload" => Self::Reload,
            "drain" => Self::Drain,
            other => {
                // Ids have no characters that a path would have to escape.
                let id = other.strip_prefix("agents/")?.strip_suffix("/disconnect")?;
                (!id.is_empty() && !id.contains('/')).then_some(Self::Disconnect(id))?
            }
        })
    }

    /// Reading changes nothing, acting does.
    pub(super) fn takes(self, method: &Method) -> bool {
        self.methods().split(", ").any(|allowed| allowed == method)
    }

    pub(super) fn methods(self) -> &'static str {
        match self {
            Self::Disconnect(_) | Self::Explain | Self::Reload | Self::Drain => "POST",
            _ => "GET, HEAD",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_names_every_path_and_its_method() {
        let document: serde_json::Value =
            serde_json::from_str(super::super::OPENAPI).expect("JSON");
        let paths = document["paths"].as_object().expect("paths");
        assert_eq!(paths.len(), 10);
        for (path, methods) in paths {
            let route = Route::parse(path).unwrap_or_else(|| panic!("{path}"));
            for method in methods.as_object().expect("methods").keys() {
                let method = Method::from_bytes(method.to_uppercase().as_bytes());
                assert!(route.takes(&method.expect("a method")), "{path}");
            }
        }
    }

    #[test]
    fn other_paths_lead_nowhere() {
        for path in [
            "/",
            "/api/v1/",
            "/api/v1/status/",
            "/api/v1//status",
            "/api/v2/status",
            "/api/v1/agents//disconnect",
            "/api/v1/agents/a/b/disconnect",
            "/api/v1/agents/disconnect",
        ] {
            assert_eq!(Route::parse(path), None, "{path}");
        }
    }
}
