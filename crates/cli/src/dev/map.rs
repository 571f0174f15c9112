//! `--map [NAME:]PORT=HOST:PORT`: a local port, the connector it stands for, and its target.

use std::str::FromStr;

use nowconnect_settings::{NAME, is_name};

/// One service to reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Map {
    /// Connector.
    pub(crate) name: String,
    /// Port that the hub listens on, on loopback; 0 takes a free one.
    pub(crate) port: u16,
    /// Host name or address of the target, without brackets.
    pub(crate) host: String,
    /// Port of the target.
    pub(crate) target_port: u16,
}

impl Map {
    /// A connector called after the target's port.
    pub(crate) fn new(port: u16, host: &str, target_port: u16) -> Self {
        let name = format!("port{target_port}");
        Self {
            name,
            port,
            host: host.to_owned(),
            target_port,
        }
    }

    /// The target as people write it.
    pub(crate) fn target(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.target_port),
            false => format!("{}:{}", self.host, self.target_port),
        }
    }
}

impl FromStr for Map {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str = "write PORT=HOST:PORT, as in 1389=dc1.corp.local:389";
        let (local, target) = text.split_once('=').ok_or(FORM)?;
        let (name, port) = match local.rsplit_once(':') {
            Some((name, port)) => (Some(name), port),
            None => (None, local),
        };
        let (host, target_port) = target.rsplit_once(':').ok_or(FORM)?;
        let number = |port: &str| port.parse().map_err(|_| format!("{port:?} is no port"));
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        if bare.is_none() && host.contains(':') {
            return Err("put an IPv6 address in brackets, as in 1389=[::1]:389".into());
        }
        let host = bare.unwrap_or(host);
        if host.is_empty() || host.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(format!("{host:?} is no host; {FORM}"));
        }
        let mut map = Self::new(number(port)?, host, number(target_port)?);
        if map.target_port == 0 {
            return Err("nothing listens on port 0".into());
        }
        if let Some(name) = name {
            if !is_name(name) {
                return Err(format!("the name {name:?} is not {NAME}"));
            }
            map.name = name.to_owned();
        }
        Ok(map)
    }
}

/// Gives every map a name of its own: a target port used twice becomes `port389`, `port389-2`.
pub(crate) fn tell_apart(maps: &mut [Map]) {
    for index in 1..maps.len() {
        let (before, rest) = maps.split_at_mut(index);
        let taken = |name: &str| before.iter().any(|map| map.name == name);
        let wanted = rest[0].name.clone();
        let mut number = 2;
        while taken(&rest[0].name) {
            rest[0].name = format!("{wanted}-{number}");
            number += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(name: &str, port: u16, host: &str, target_port: u16) -> Result<Map, String> {
        Ok(Map {
            name: name.into(),
            ..Map::new(port, host, target_port)
        })
    }

    #[test]
    fn maps_are_read() {
        for (text, expected) in [
            (
                "1389=dc1.corp.local:389",
                map("port389", 1389, "dc1.corp.local", 389),
            ),
            ("ldap:1389=10.0.0.1:389", map("ldap", 1389, "10.0.0.1", 389)),
            ("0=[::1]:5432", map("port5432", 0, "::1", 5432)),
        ] {
            assert_eq!(text.parse(), expected, "{text}");
        }
        assert_eq!(
            "0=[::1]:5432".parse::<Map>().unwrap().target(),
            "[::1]:5432"
        );
    }

    #[test]
    fn mistakes_are_explained() {
        for (text, part) in [
            ("1389", "1389=dc1"),
            ("1389=host", "1389=dc1"),
            ("70000=host:1", "\"70000\" is no port"),
            ("1=host:http", "\"http\" is no port"),
            ("1=host:0", "port 0"),
            ("1=::1:389", "brackets"),
            ("1=:389", "no host"),
            ("a b:1=host:389", "the name"),
        ] {
            let error = text.parse::<Map>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn equal_names_are_told_apart() {
        let mut maps =
            ["1=a:389", "2=b:389", "port389-2:3=c:1", "4=d:389"].map(|m| m.parse().unwrap());
        tell_apart(&mut maps);
        let names = maps.map(|map: Map| map.name);
        assert_eq!(names, ["port389", "port389-2", "port389-2-2", "port389-3"]);
    }
}
