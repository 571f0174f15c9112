//! Types a key can have.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use http::Uri;
use ipnet::IpNet;

use crate::effective::Shown;
use crate::secret::{Secret, mask_url};

/// A type that a scalar of a configuration can become.
pub trait Value: Sized {
    /// What is expected, for messages and documentation: `an integer`.
    const KIND: &'static str;
    /// Whether YAML must see text (quoted or plain), as opposed to a boolean or a number.
    const TEXT: bool = true;
    /// The words it is limited to; empty = not limited.
    const WORDS: &'static [&'static str] = &[];

    /// The value of `text`; the error says what is wrong beyond "not [`Self::KIND`]", or is empty.
    /// It must not repeat the text.
    fn parse(text: &str) -> Result<Self, String>;

    /// The same for text from the environment, which has no types.
    fn parse_untyped(text: &str) -> Result<Self, String> {
        Self::parse(text)
    }

    /// The value as the effective configuration shows it, secrets masked.
    fn show(&self) -> Shown;
}

/// Whether `text` can name a connector, a replica or an agent: 1 to 64 of `A-Z a-z 0-9 . _ -`.
pub fn is_name(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    (1..=64).contains(&text.len()) && text.bytes().all(allowed)
}

/// [`is_name`] in words.
pub const NAME: &str = "1 to 64 letters, digits, `.`, `_`, `-`";

/// Unsigned integers, which can have a range.
pub trait Number: Value + Copy + PartialOrd + std::fmt::Display {}

macro_rules! integers {
    ($($type:ty),*) => {$(
        impl Value for $type {
            const KIND: &'static str = "an integer";
            const TEXT: bool = false;

            fn parse(text: &str) -> Result<Self, String> {
                let digits = text.bytes().all(|b| b.is_ascii_digit());
                match text.parse() {
                    Ok(number) if digits => Ok(number),
                    // Too big is the one thing that can be wrong with digits.
                    _ if digits && !text.is_empty() => Err(format!("at most {}", <$type>::MAX)),
                    _ => Err(String::new()),
                }
            }

            fn show(&self) -> Shown {
                Shown::Plain(self.to_string())
            }
        }

        impl Number for $type {}
    )*};
}

integers!(u8, u16, u32, u64, usize);

impl Value for bool {
    const KIND: &'static str = "true or false";
    const TEXT: bool = false;

    fn parse(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(String::new()),
        }
    }

    fn parse_untyped(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Ok(true),
            "false" | "0" | "no" | "off" => Ok(false),
            _ => Err(String::new()),
        }
    }

    fn show(&self) -> Shown {
        Shown::Plain(self.to_string())
    }
}

impl Value for String {
    const KIND: &'static str = "text";

    fn parse(text: &str) -> Result<Self, String> {
        match text.chars().any(char::is_control) {
            true => Err("control characters are not allowed".into()),
            false => Ok(text.to_owned()),
        }
    }

    fn show(&self) -> Shown {
        Shown::Text(self.clone())
    }
}

impl Value for Secret {
    const KIND: &'static str = "text";

    fn parse(text: &str) -> Result<Self, String> {
        String::parse(text).map(Secret::new)
    }

    fn show(&self) -> Shown {
        Shown::Text(mask_url(self.expose()))
    }
}

impl Value for PathBuf {
    const KIND: &'static str = "a file name";

    fn parse(text: &str) -> Result<Self, String> {
        String::parse(text).map(PathBuf::from)
    }

    fn show(&self) -> Shown {
        Shown::Text(self.display().to_string())
    }
}

impl Value for IpAddr {
    const KIND: &'static str = "an IP address like 0.0.0.0 or ::1";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "localhost" => Ok(std::net::Ipv4Addr::LOCALHOST.into()),
            _ => text
                .trim_matches(['[', ']'])
                .parse()
                .map_err(|_| String::new()),
        }
    }

    fn show(&self) -> Shown {
        Shown::Text(self.to_string())
    }
}

impl Value for SocketAddr {
    const KIND: &'static str = "an address and port like 0.0.0.0:389 or [::1]:389";

    fn parse(text: &str) -> Result<Self, String> {
        let numeric = match text.strip_prefix("localhost:") {
            Some(port) => format!("127.0.0.1:{port}"),
            None => text.to_owned(),
        };
        numeric.parse().map_err(|_| match text.rsplit_once(':') {
            Some((host, port)) if !port.is_empty() && port.parse::<u16>().is_err() => {
                format!("the port after {host:?} must be 0 to 65535")
            }
            _ => String::new(),
        })
    }

    fn show(&self) -> Shown {
        Shown::Text(self.to_string())
    }
}

impl Value for IpNet {
    const KIND: &'static str = "a network like 10.0.0.0/8 or an IP address";

    fn parse(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(address.into());
        }
        let net: IpNet = text.parse().map_err(|_| String::new())?;
        match net.trunc() == net {
            true => Ok(net),
            false => Err(format!(
                "bits are set behind the prefix, meant is perhaps {}",
                net.trunc()
            )),
        }
    }

    fn show(&self) -> Shown {
        Shown::Text(self.to_string())
    }
}

impl Value for Uri {
    const KIND: &'static str = "a URL";

    fn parse(text: &str) -> Result<Self, String> {
        let uri: Uri = text.parse().map_err(|_| String::new())?;
        match uri.authority() {
            Some(a) if a.as_str().contains('@') => {
                Err("user and password in this URL would not be used, remove them".into())
            }
            Some(a) if !a.host().is_empty() && uri.scheme().is_some() => match a.port_u16() {
                // `http` keeps a port that is no number as text.
                None if a.as_str().len() > a.host().len() => Err("the port is not valid".into()),
                _ => Ok(uri),
            },
            _ => Err("scheme and host are needed".into()),
        }
    }

    fn show(&self) -> Shown {
        Shown::Text(self.to_string())
    }
}

/// Declares an enum whose values are written as words (in any case) in a configuration.
///
/// ```
/// nowconnect_settings::choices! {
///     /// How loud.
///     pub enum Volume {
///         /// Not.
///         Off = "off",
///         /// Very.
///         Full = "full",
///     }
/// }
/// assert_eq!(Volume::Full.as_str(), "full");
/// ```
#[macro_export]
macro_rules! choices {
    ($(#[$meta:meta])* $vis:vis enum $name:ident {
        $($(#[$variant_meta:meta])* $variant:ident = $word:literal $(| $alias:literal)*),+ $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $vis enum $name {
            $($(#[$variant_meta])* $variant,)+
        }

        impl $name {
            /// The word for it in a configuration.
            $vis fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl $crate::Value for $name {
            const KIND: &'static str = "one of the words";
            const WORDS: &'static [&'static str] = &[$($word),+];

            fn parse(text: &str) -> Result<Self, String> {
                $(if [$word $(, $alias)*].iter().any(|word| word.eq_ignore_ascii_case(text)) {
                    return Ok(Self::$variant);
                })+
                Err(String::new())
            }

            fn show(&self) -> $crate::Shown {
                $crate::Shown::Text(self.as_str().to_owned())
            }
        }
    };
}
