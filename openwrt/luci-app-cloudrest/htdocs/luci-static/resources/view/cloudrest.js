'use strict';
'require view';
'require dom';
'require form';
'require fs';
'require poll';
'require uci';
'require ui';

/* The page of CloudREST: how the gateway is, who asks to be paired, its settings. The help
   texts are those of cloudrestd --help; a test holds them together. */

var program = '/usr/bin/cloudrestd',
    config = ['--config', '/etc/config/cloudrest'],
    pollIdle = 10,   // seconds between two looks; each one starts a process on the router
    pollPairing = 2; // while phones may ask

/* What is allowed to be run stands in rpcd's acl.d, word for word. */
function run() {
	var args = Array.prototype.slice.call(arguments);

	return fs.exec(program, args.concat(config)).then(function(res) {
		if (res.code != 0)
			throw new Error((res.stderr || '').replace(/^cloudrestd: /gm, '').trim() || _('The program failed'));

		return res.stdout;
	});
}

function status() {
	return run('status', '--json').then(JSON.parse).catch(function(err) {
		return { error: err.message };
	});
}

function sentence(text) {
	return text.charAt(0).toUpperCase() + text.slice(1) + '.';
}

function age(time) {
	return time ? ' ' + _('since %s').format(new Date(time).toLocaleString()) : '';
}

function tether(t) {
	switch (t.state) {
	case 'up':
		return _('Connected to %s').format(t.relay) + age(t.since);
	case 'off':
		return _('Off: no relay is set, the device is on the LAN only');
	default:
		return _('Not connected') + age(t.since) + (t.error ? ': ' + t.error : '');
	}
}

var access = {
	paired: _('Paired clients'),
	origin: _('Whom the REST service lets in'),
	open: _('EVERYBODY on the LAN')
};

function cache(c) {
	if (c.state != 'on')
		return _('Off');

	return _('%d answers, %1024mB of %1024mB; %d requests answered without the service')
		.format(c.entries, c.bytes, c.limit, c.hits);
}

/* settings are tabs of [ name, title, help, kind ... ]. The kinds are functions that make an
   option of the form fit; sample is what an empty field shows: the default or an example. */
function sample(text) {
	return function(o) { o.placeholder = text };
}

function choice() {
	var values = arguments;

	return function(o) {
		for (var i = 0; i < values.length; i++)
			o.value(values[i]);

		o.default = values[0];
		o.write = function(section, value) { // the default is not written down
			return value == o.default ? o.remove(section) : form.ListValue.prototype.write.apply(o, arguments);
		};
	};
}

function match(pattern, want) {
	return function(o) {
		o.validate = function(section, value) {
			return value == '' || pattern.test(value) || want;
		};
	};
}

function type(datatype) {
	return function(o) { o.datatype = datatype };
}

function required(o) { o.rmempty = false }

/* onoff shows what people write, too: the daemon takes 1 and true for on. */
function onoff(initial, words) {
	return function(o) {
		o.enabled = words ? words[0] : 'on';
		o.disabled = words ? words[1] : 'off';
		o.default = initial;
		o.cfgvalue = function(section) {
			var value = uci.get('cloudrest', section, o.option);

			return value == null ? null : /^(1|on|true|yes|enabled)$/.test(value) ? o.enabled : o.disabled;
		};
	};
}

var address = match(/^(off|(\[[0-9a-fA-F:.]+\]|[^:\s]*):\d{1,5})$/, _('want HOST:PORT, :PORT, or off')),
    path = match(/^(off|\/.+)$/, _('want a path from /, or off')),
    size = match(/^(auto|off|\d+([KMG]i?B)?)$/, _('want a size such as 4MiB')),
    relays = match(/^wss?:\/\/.+/, _('want wss://HOST'));

var tabs = [
	['service', _('Service'), [
		['enabled', _('Enable'), _('start the daemon at all'), form.Flag, onoff('1', ['1', '0']), required],
		['origin', _('REST service'), _('where the maker\'s REST service listens'), form.Value,
			sample('http://127.0.0.1:8080'), match(/^(http:\/\/.+|unix:\/\/\/.+)/, _('want http://HOST:PORT or unix:///PATH'))],
		['name', _('Name'), _('what people call the device; without it, the name that the REST service gives at GET /device'), form.Value,
			sample('Garden'), type('maxlength(255)')],
		['access', _('Access'), _('who may use the service: clients that have paired (paired), whom the REST service itself lets in (origin), or everybody, on purpose and for the bench only (open)'), form.ListValue,
			choice('paired', 'origin', 'open')],
		['origin_concurrency', _('Requests at once'), _('how many requests may be in the service at once; the rest wait'), form.Value,
			sample('4'), type('range(1,1024)')],
		['origin_queue', _('Requests that wait'), _('how many requests may wait; the rest are answered 503 with Retry-After'), form.Value,
			sample('64'), type('range(0,65536)')]
	]],
	['network', _('Network'), [
		['https', _('HTTPS'), _('where to listen for HTTPS'), form.Value, sample(':8443'), address, required],
		['http', _('HTTP'), _('where to listen for HTTP, which is only redirected to HTTPS'), form.Value, sample('off'), address, required],
		['relay', _('Relays'), _('relays that make the device reachable from anywhere; one of them is used at a time; without any there is no tether'), form.DynamicList,
			sample('wss://a.example'), relays],
		['relay_ca', _('Authorities of the relays'), _('a PEM file of the authorities for the relays\' certificates; without it, those of the system'), form.Value,
			sample('/etc/cloudrest/relay-ca.pem'), path],
		['mdns', _('mDNS'), _('announce the device by mDNS and DNS-SD'), form.Flag, onoff('on')],
		['udp_discovery', _('Broadcasts'), _('answer the UDP broadcasts of phone apps'), form.Flag, onoff('on')],
		['interfaces', _('Interfaces'), _('the network interfaces that discovery uses; without it, all'), form.DynamicList, sample('br-lan'), type('uciname')]
	]],
	['notify', _('Notifications'), [
		['fifo', _('Named pipe'), _('the named pipe that programs write lines to; each line becomes a notification'), form.Value,
			sample('/var/run/cloudrest/notify'), path, required],
		['notify_socket', _('Socket'), _('a UNIX stream socket for the same'), form.Value,
			sample('/var/run/cloudrest/notify.sock'), path, required]
	]],
	['cache', _('Cache and memory'), [
		['cache', _('Cache'), _('memory for answers that may be given out again (RFC 9111); auto: by the memory of the board, 512KiB to 16MiB'), form.Value, sample('auto'), size],
		['cache_rules', _('Rules'), _('what may be kept, for a service that does not say so itself; repeated or separated by commas; the first rule that fits a path holds'), form.DynamicList,
			sample('/zones/* ttl=5s')],
		['cache_flash', _('Keep on flash'), _('keep what is for everybody and stays fresh for 10 minutes or more over a restart; at most one write to flash in 5 minutes'), form.Flag, onoff('off')],
		['gomemlimit', _('Heap limit'), _('the memory that the Go heap may grow to; without it the daemon chooses by the memory of the board'), form.Value, sample('24MiB'), size],
		['gogc', _('Garbage'), _('how much garbage may pile up before it is collected, in percent of the memory in use; without it the daemon chooses by the memory of the board'), form.Value,
			sample('50'), type('range(5,1000)')]
	]],
	['board', _('Board and log'), [
		['uid_source', _('UID'), _('where the UID of the board is looked for, in this order, at the very first start; without it: machine_udid, device-tree, nvmem, mtd-otp, emmc, mac, random. Also spi=BUS.CS, file=PATH, machine-id'), form.Value,
			sample('spi=0.0')],
		['button', _('Button'), _('the GPIO line of the button that opens pairing and, held for 10 s, resets the device'), form.Value, sample('GPIO17')],
		['led', _('LED'), _('the LED that shows the pairing window: one of the kernel\'s, or gpio=LINE'), form.Value, sample('green:status')],
		['log_level', _('Log'), _('what to log, to standard error'), form.ListValue, choice('info', 'debug', 'warn', 'error')]
	]]
];

return view.extend({
	load: function() {
		return Promise.all([ status(), uci.load('cloudrest') ]);
	},

	row: function(title, value) {
		return E('tr', { 'class': 'tr' }, [
			E('td', { 'class': 'td left', 'width': '33%' }, [ title ]),
			E('td', { 'class': 'td left', 'style': 'overflow-wrap:anywhere' }, [ value ])
		]);
	},

	renderStatus: function(report) {
		if (report.error)
			return E('p', { 'class': 'alert-message warning' }, [
				_('No answer from the gateway: %s.').format(report.error), ' ',
				_('If it is enabled below, the system log tells why.')
			]);

		var s = report.status,
		    url = s.url ? E('a', { 'href': s.url, 'target': '_blank', 'rel': 'noreferrer' }, [ s.url ]) : _('not listening');

		return E('table', { 'class': 'table' }, [
			this.row(_('Running'), _('%s, version %s, for %t').format(s.name, s.version, s.uptime)),
			this.row(_('Device ID'), E('code', {}, [ s.id ])),
			this.row(_('LAN address'), url),
			this.row(_('LAN pin'), E('code', {}, [ s.certificate_sha256 ])),
			this.row(_('REST service'), s.origin.state == 'up' ? _('Answers') : _('Does not answer') + (s.device.error ? ': ' + s.device.error : '')),
			this.row(_('Relay'), tether(s.tether)),
			this.row(_('Access'), _('%s; %d paired').format(access[s.access], report.clients)),
			this.row(_('Cache'), cache(s.cache))
		]);
	},

	button: function(kind, text, verb, flag, arg) {
		return E('button', {
			'class': 'btn cbi-button cbi-button-' + kind,
			'click': ui.createHandlerFn(this, 'act', verb, flag, arg),
			'disabled': L.hasViewPermission() ? null : true
		}, [ text ]);
	},

	renderPairing: function(report) {
		if (report.error)
			return '';

		var pairing = report.status.pairing,
		    left = pairing.open ? Math.max(0, Math.round((new Date(pairing.until) - new Date(report.status.now)) / 1000)) : 0,
		    nodes = [];

		if (!pairing.open)
			return E('p', {}, [
				this.button('action', _('Open pairing window'), 'pair', '--open', '--json'),
				' ', _('For one minute phones may ask to be paired.')
			]);

		nodes.push(E('p', {}, [ E('em', { 'class': 'spinning' }, [
			_('Pairing is open for %t. Ask on the phone now.').format(left) ]) ]));

		(report.requests || []).forEach(L.bind(function(ask) {
			nodes.push(E('div', { 'class': 'alert-message notice' }, [
				E('p', {}, [ _('%s asks, from %s. Does it show this code?').format(ask.name, ask.from) ]),
				E('p', { 'style': 'font-size:200%;line-height:1.5;letter-spacing:.1em' }, [ E('strong', {}, [ ask.code.replace(/^(...)/, '$1 ') ]) ]),
				E('p', {}, [
					this.button('positive', _('Same code: let it in'), 'pair', '--approve', ask.request),
					' ',
					this.button('negative', _('Refuse'), 'pair', '--refuse', ask.request)
				])
			]));
		}, this));

		return E('div', {}, nodes);
	},

	/* act runs a command of a button and looks again. */
	act: function(verb, flag, arg) {
		return run(verb, flag, arg).catch(function(err) {
			ui.addNotification(null, E('p', {}, [ err.message ]), 'error');
		}).then(L.bind(this.look, this));
	},

	look: function() {
		return status().then(L.bind(this.show, this));
	},

	show: function(report) {
		this.seen = Date.now();
		this.pairing = !report.error && report.status.pairing.open;
		dom.content(this.statusNode, this.renderStatus(report));
		dom.content(this.pairingNode, this.renderPairing(report));
	},

	/* tick is called every pollPairing seconds. */
	tick: function() {
		if (this.pairing || Date.now() - this.seen >= pollIdle * 1000)
			return this.look();

		return Promise.resolve();
	},

	render: function(data) {
		var m = new form.Map('cloudrest', _('CloudREST'),
			_('Makes the REST service of a device reachable by HTTPS, on the LAN first and from anywhere through a relay second.'));
		var s = m.section(form.NamedSection, 'main', 'cloudrest', _('Settings'));

		s.addremove = false;
		tabs.forEach(function(tab) {
			s.tab(tab[0], tab[1]);
			tab[2].forEach(function(setting) {
				var o = s.taboption(tab[0], setting[3], setting[0], setting[1], sentence(setting[2]));

				setting.slice(4).forEach(function(kind) { kind(o) });
			});
		});

		this.statusNode = E('div');
		this.pairingNode = E('div');
		this.show(data[0]);
		poll.add(L.bind(this.tick, this), pollPairing);

		return m.render().then(L.bind(function(node) {
			var top = E('div', { 'class': 'cbi-section' }, [ E('h3', {}, [ _('Status') ]), this.statusNode, this.pairingNode ]);

			node.insertBefore(top, node.querySelector('.cbi-section'));
			return node;
		}, this));
	}
});
