import autobahn from 'autobahn';

const at = (id) => document.getElementById(id);
const url = new URLSearchParams(location.search).get('url') || 'ws://127.0.0.1:8080/ws';
// autobahn gives up after 15 attempts unless it is told not to.
const connection = new autobahn.Connection({url, realm: 'realm1', max_retries: -1});
let session;

async function show() {
  const {rows} = await session.call('rowcast.actions.find', [], {where: {status: false}, order: ['id']});
  at('actions').replaceChildren(...rows.map((row) => {
    const item = document.createElement('li');
    const done = document.createElement('button');
    done.textContent = 'done';
    done.onclick = () => act(() => session.call('rowcast.actions.complete', [row.id]));
    item.append(`${row.action} ${row.path} `, done);
    return item;
  }));
}

// What is refused has a URI, a message and details: `fields` has the reasons for each column.
async function act(call) {
  try {
    await call();
    at('error').textContent = '';
    await show();
  } catch (refused) {
    const reasons = refused.kwargs && refused.kwargs.fields;
    at('error').textContent = reasons
      ? Object.entries(reasons).map(([column, said]) => `${column} ${said.join(', ')}`).join('; ')
      : `${refused.error}: ${refused.args}`;
  }
}

at('new').onsubmit = (event) => {
  event.preventDefault();
  const values = {action: at('action').value, path: at('path').value};
  act(() => session.call('rowcast.actions.create', [values]));
};

connection.onopen = (joined) => {
  session = joined;
  at('state').textContent = 'connected';
  act(show);
};
connection.onclose = (reason, details) => {
  at('state').textContent = `${reason}; again in ${Math.round(details.retry_delay || 0)} s`;
};
connection.open();
