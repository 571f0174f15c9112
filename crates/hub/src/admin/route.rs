//! The paths of the admin API.

use http::Method;

use super::agent_orders::shown;

/// What a path asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route<'a> {
    Status,
    Agents,
    Disconnect(&'a str),
    Move(&'a str),
    Flows,
    Flow(&'a str),
    Mesh,
    Connectors,
    Path(&'a str),
    Events,
    History,
    Config,
    Explain,
    OpenApi,
    Reload,
    Drain,
}

impl<'a> Route<'a> {
    pub(super) fn parse(path: &'a str) -> Option<Self> {
        let path = path.strip_prefix("/api/v1/")?;
        let mut parts = path.split('/');
        // Names have no characters that a path would have to escape.
        let mut name = || parts.next().filter(|part| !part.is_empty());
        let route = match (name()?, name(), name()) {
            ("status", None, None) => Self::Status,
            ("agents", None, None) => Self::Agents,
            ("agents", Some(id), Some("disconnect")) => Self::Disconnect(id),
            ("agents", Some(id), Some("move")) => Self::Move(id),
            ("flows", None, None) => Self::Flows,
            ("flows", Some(cid), None) => Self::Flow(cid),
            ("mesh", None, None) => Self::Mesh,
            ("connectors", None, None) => Self::Connectors,
            ("connectors", Some(connector), Some("path")) => Self::Path(connector),
            ("events", None, None) => Self::Events,
            ("history", None, None) => Self::History,
            ("config", None, None) => Self::Config,
            ("policy", Some("explain"), None) => Self::Explain,
            ("openapi.json", None, None) => Self::OpenApi,
            ("reload", None, None) => Self::Reload,
            ("drain", None, None) => Self::Drain,
            _ => return None,
        };
        (!path.ends_with('/') && parts.next().is_none()).then_some(route)
    }

    /// What records call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Agents => "agents",
            Self::Disconnect(_) => "disconnect",
            Self::Move(_) => "move",
            Self::Flows => "flows",
            Self::Flow(_) => "flow",
            Self::Mesh => "mesh",
            Self::Connectors => "connectors",
            Self::Path(_) => "path",
            Self::Events => "events",
            Self::History => "history",
            Self::Config => "config",
            Self::Explain => "explain",
            Self::OpenApi => "openapi",
            Self::Reload => "reload",
            Self::Drain => "drain",
        }
    }

    /// The agent that it is about, cut to the length of an id.
    pub(super) fn agent_id(self) -> Option<&'a str> {
        match self {
            Self::Disconnect(id) | Self::Move(id) => Some(shown(id)),
            _ => None,
        }
    }

    /// Whether it is an order.
    pub(super) fn acts(self) -> bool {
        matches!(
            self,
            Self::Disconnect(_) | Self::Move(_) | Self::Reload | Self::Drain
        )
    }

    /// Reading changes nothing, acting does.
    pub(super) fn takes(self, method: &Method) -> bool {
        self.methods().split(", ").any(|allowed| allowed == method)
    }

    pub(super) fn methods(self) -> &'static str {
        match self {
            Self::Disconnect(_) | Self::Move(_) | Self::Explain | Self::Reload | Self::Drain => {
                "POST"
            }
            _ => "GET, HEAD",
        }
    }

    /// Whether the hub answers for the others too. What concerns one process and its files it takes
    /// from its own operator alone.
    pub(super) fn is_of_cluster(self) -> bool {
        !matches!(
            self,
            Self::Config | Self::Explain | Self::OpenApi | Self::Reload | Self::Drain
        )
    }

    /// What its query may say besides `scope`.
    pub(super) fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Agents => &["limit", "cursor", "agent", "connector", "hub"],
            Self::Flows => &[
                "limit",
                "cursor",
                "connector",
                "agent",
                "client",
                "listener",
                "hub",
                "cid",
                "state",
            ],
            Self::Path(_) => &["limit", "hub"],
            Self::Events => &["limit", "since"],
            Self::History => &["since"],
            Self::Disconnect(_) | Self::Move(_) => &["hub"],
            _ => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_names_every_path_its_method_and_its_query() {
        let document: serde_json::Value =
            serde_json::from_str(super::super::OPENAPI).expect("JSON");
        let paths = document["paths"].as_object().expect("paths");
        assert_eq!(paths.len(), 16);
        let mut seen = std::collections::HashSet::new();
        for (path, methods) in paths {
            let route = Route::parse(path).unwrap_or_else(|| panic!("{path}"));
            let is_new = seen.insert(std::mem::discriminant(&route));
            assert!(is_new, "{path} leads to the place of another");
            for (method, operation) in methods.as_object().expect("methods") {
                let method = Method::from_bytes(method.to_uppercase().as_bytes());
                assert!(route.takes(&method.expect("a method")), "{path}");
                let parameters = operation["parameters"].as_array();
                let query = parameters.into_iter().flatten().filter_map(|parameter| {
                    let name = parameter["$ref"].as_str().map(|name| {
                        let name = name.rsplit('/').next().unwrap_or_default();
                        &document["components"]["parameters"][name]
                    });
                    let parameter = name.unwrap_or(parameter);
                    (parameter["in"] == "query").then(|| parameter["name"].as_str())?
                });
                let mut told: Vec<_> = query.collect();
                let mut known = route.keys().to_vec();
                if route.is_of_cluster() {
                    known.push("scope");
                }
                told.sort_unstable();
                known.sort_unstable();
                assert_eq!(told, known, "{path}");
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
            "/api/v1/agents/a/move/",
            "/api/v1/connectors/ldap",
            "/api/v1/flows/a/b",
        ] {
            assert_eq!(Route::parse(path), None, "{path}");
        }
    }
}
