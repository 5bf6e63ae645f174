import autobahn from 'autobahn';
import {Rowcast} from 'rowcast';

const at = (id) => document.getElementById(id);
const url = new URLSearchParams(location.search).get('url') || 'ws://127.0.0.1:8080/ws';
const onstate = (state) => (at('state').textContent = state);
const db = new Rowcast(autobahn, {url, realm: 'realm1', onstate});
const todo = db.live('actions', {where: {status: false}, order: ['id']});

// The rows as anybody has left them, and what this page is writing, as if it were there already.
todo.subscribe((rows) => {
  at('actions').replaceChildren(...rows.map((row) => {
    const item = document.createElement('li');
    const done = document.createElement('button');
    done.textContent = 'done';
    done.onclick = () => act(todo.update(row.id, {status: true}));
    item.append(`${row.action} ${row.path} `, done);
    return item;
  }));
});

async function act(write) {
  at('error').textContent = await write.then(() => '', (refused) => `${refused.error}: ${refused.args}`);
}

at('new').onsubmit = (event) => {
  event.preventDefault();
  act(todo.create({action: at('action').value, path: at('path').value}));
};
